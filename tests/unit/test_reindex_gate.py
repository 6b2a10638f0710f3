"""When a new index version passes, and when one of its documents lacks a change that the old one has."""

import pytest

from daemon.core.plan import Stored
from daemon.core.version import LogVersion, SnapshotVersion, Version
from workflows.reindex.contract import Gate, Quality
from workflows.reindex.gate import is_behind


def stored(version: Version | None) -> Stored | None:
    return None if version is None else Stored(version, "h", "m")


def log(position: int) -> LogVersion:
    return LogVersion(0, position, position + 1, position)


def seen_below(xid: int, *running: int) -> SnapshotVersion:
    return SnapshotVersion(0, min((xid, *running)), xid, tuple(running))


@pytest.mark.parametrize(
    ("old", "new", "behind"),
    [
        (log(7), log(7), False),
        (log(7), log(8), False),
        (log(8), log(7), True),
        (log(7), seen_below(9), False),
        (log(7), seen_below(7), True),
        (log(7), seen_below(9, 7), True),
        (seen_below(9), log(7), False),
        (seen_below(9), seen_below(8), False),
        (log(7), None, False),
        (None, log(7), False),
    ],
)
def test_a_document_is_behind_if_a_change_of_the_log_is_in_the_old_version_alone(
    old: Version | None, new: Version | None, behind: bool
) -> None:
    assert is_behind(stored(old), stored(new)) is behind


@pytest.mark.parametrize(
    ("gate", "failures"),
    [
        ({}, ()),
        ({"quality": Quality(recall=0.95)}, ()),
        ({"quality": Quality(recall=0.94)}, ("recall@10 is 0.940, and must be 0.95",)),
        ({"differences": {"not_indexed": 3}}, ("3 documents not indexed",)),
        ({"behind": 1}, ("1 documents lack a change that the old index has",)),
    ],
)
def test_a_gate_passes_if_nothing_differs_and_recall_is_high_enough(
    gate: dict[str, object], failures: tuple[str, ...]
) -> None:
    made = Gate.model_validate({"rows": 5, "documents": 5, "differences": {}, "recall_min": 0.95} | gate)
    assert made.failures == failures
    assert made.passed == (not failures)
