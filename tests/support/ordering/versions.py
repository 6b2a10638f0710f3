"""Versions for hypothesis: few numbers, so that they meet, about where numbers are easily compared wrong."""

from hypothesis import strategies as st

from daemon.core.version import LogVersion, SnapshotVersion, Version

_SMALL = (0, 1, 2, 9, 10, 11, 99, 100, 101)
_LARGE = tuple(
    edge + distance
    for edge in (1 << 31, 1 << 32, 1 << 53, 10**16, 10**18, 1 << 63)
    for distance in (-1, 0, 1)
)
_NUMBERS = (*_SMALL, *_LARGE, (1 << 64) - 2, (1 << 64) - 1)
_XIDS_RUNNING_MAX = 4
# More than any server runs at once by default, to see that a long list is searched whole.
_MANY_RUNNING = 300

numbers = st.sampled_from(_NUMBERS)
eras = st.sampled_from((0, 1, 2, 10, (1 << 53) + 1))


def log_versions() -> st.SearchStrategy[LogVersion]:
    return st.builds(LogVersion, eras, numbers, numbers, numbers)


@st.composite
def snapshot_versions(draw: st.DrawFn) -> SnapshotVersion:
    xmax = draw(numbers)
    running = [number for number in _NUMBERS if number < xmax]
    if xmax > _MANY_RUNNING and draw(st.integers(0, 19)) == 0:
        running = list(range(xmax - _MANY_RUNNING, xmax))
    elif running:
        chosen = draw(st.lists(st.sampled_from(running), max_size=_XIDS_RUNNING_MAX, unique=True))
        running = sorted(chosen)
    return SnapshotVersion(draw(eras), min(running, default=xmax), xmax, tuple(running))


def versions() -> st.SearchStrategy[Version]:
    return st.one_of(log_versions(), snapshot_versions())


@st.composite
def edited_texts(draw: st.DrawFn) -> str:
    """The text of a version with one character put in, replaced or taken out."""
    text: str = draw(versions()).encode()
    at = draw(st.integers(0, len(text)))
    put_in: str = draw(st.sampled_from(("", *"LS:0129,-+_. \n\0x\u0663")))
    return text[:at] + put_in + text[at + draw(st.integers(0, 1)) :]


# What a sloppy reader of versions would take for one.
MALFORMED = (
    "",
    "L",
    "X:1:2:3:4",
    "l:1:2:3:4",
    "L:1:2:3",
    "L:1:2:3:",
    "L:1:2:3:4:5",
    "L:1:2:3:4,5",
    "L:1:2:3:,4",
    "L:1:-2:3:4",
    "L:1:+2:3:4",
    "L:1: 2:3:4",
    "L:1:2_0:3:4",
    "L:01:2:3:4",
    "L:1:2:3:04",
    "L:1::3:4",
    "L:1:2.0:3:4",
    "L:1:0x2:3:4",
    "L:1:2:3:4\n",
    " L:1:2:3:4",
    "L:1:2:3:4\0",
    "L:1:2:3:\u0663",
    "S:1:2:3",
    "S:1:2:3:,",
    "S:1:2:3:4,",
    "S:1:2:3:,4",
    "S:1:2:3:4,,5",
    "S:1:2:3:4, 5",
    "S:1:2:3:4,05",
    "S:1:2:3:4:5",
    "S:1::3:",
    "S:1:2:3:\n",
    "S:1:2:3:5\r\n+OK",
    "L:1:2:3:" + "x" * 5000,
)
