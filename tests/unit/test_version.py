from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.version import (
    Anchor,
    LogVersion,
    SnapshotVersion,
    Version,
    decode,
    replaces,
    snapshot_order,
    sweeps,
    widen_xid,
)
from tests.support.ordering.versions import MALFORMED, edited_texts, log_versions, snapshot_versions, versions

CHANGE = LogVersion(era=1, commit_lsn=100, lsn=120, xid=7)
# Transactions below 10 have ended but for 5 and 7.
SNAPSHOT = SnapshotVersion(era=1, xmin=5, xmax=10, xip=(5, 7))


@pytest.mark.parametrize("write", [CHANGE, SNAPSHOT])
def test_nothing_stored_is_replaced_by_anything(write: Version) -> None:
    assert replaces(write, None)


@pytest.mark.parametrize("write", [CHANGE, SNAPSHOT])
@pytest.mark.parametrize("stored", [CHANGE, SNAPSHOT])
def test_a_newer_era_wins_and_an_older_one_never_does(write: Version, stored: Version) -> None:
    later = replace(write, era=2)
    assert replaces(later, stored)
    assert sweeps(later, stored)
    assert not replaces(stored, later)
    assert not sweeps(stored, later)


@pytest.mark.parametrize(
    ("write", "wins", "why"),
    [
        (LogVersion(1, 101, 90, 7), True, "a later commit, though its own LSN is smaller (COPY that waited)"),
        (LogVersion(1, 99, 130, 7), False, "an earlier commit, though its own LSN is greater"),
        (LogVersion(1, 100, 121, 7), True, "later in the same transaction"),
        (LogVersion(1, 100, 119, 7), False, "earlier in the same transaction"),
        (LogVersion(1, 100, 120, 7), False, "the same change again"),
        (LogVersion(1, 100, 121, 3), True, "the xid plays no part between changes"),
        (LogVersion(1, 100, 119, 9), False, "the xid plays no part between changes"),
    ],
)
def test_a_change_replaces_a_change_by_commit_then_position(write: LogVersion, wins: bool, why: str) -> None:
    assert replaces(write, CHANGE) is wins, why
    assert sweeps(write, CHANGE) is wins, why


@pytest.mark.parametrize(
    ("xid", "visible", "why"),
    [
        (4, True, "ended before all that was running"),
        (6, True, "ended beside running ones"),
        (9, True, "the last that had ended"),
        (5, False, "was running, the oldest"),
        (7, False, "was running"),
        (10, False, "xmax itself had not ended"),
        (11, False, "had not begun"),
    ],
)
@pytest.mark.parametrize("lsn", [0, 120, 1 << 63])
def test_a_change_replaces_a_row_from_the_source_that_does_not_see_it(
    xid: int, visible: bool, why: str, lsn: int
) -> None:
    change = LogVersion(1, lsn, lsn, xid)
    assert SNAPSHOT.sees(xid) is visible, why
    assert replaces(change, SNAPSHOT) is not visible, why
    assert replaces(SNAPSHOT, change) is visible, why
    assert sweeps(SNAPSHOT, change) is visible, why
    assert sweeps(change, SNAPSHOT) is not visible, why


@pytest.mark.parametrize(
    ("write", "wins", "swept", "why"),
    [
        (SnapshotVersion(1, 5, 11, (5, 7)), True, True, "more has ended: a greater xmax"),
        (
            SnapshotVersion(1, 5, 11, (5, 7, 8, 10)),
            True,
            True,
            "a greater xmax counts before what is running",
        ),
        (SnapshotVersion(1, 5, 9, ()), False, False, "a smaller xmax"),
        (SnapshotVersion(1, 5, 10, (5,)), True, True, "fewer are running"),
        (SnapshotVersion(1, 10, 10, ()), True, True, "none is running"),
        (SnapshotVersion(1, 5, 10, (5, 6, 7)), False, False, "more are running"),
        (SnapshotVersion(1, 5, 10, (5, 7)), True, False, "the same snapshot: written again, but not swept"),
    ],
)
def test_a_row_from_the_source_replaces_one_whose_snapshot_is_not_later(
    write: SnapshotVersion, wins: bool, swept: bool, why: str
) -> None:
    assert replaces(write, SNAPSHOT) is wins, why
    assert sweeps(write, SNAPSHOT) is swept, why


@given(versions(), versions())
def test_of_two_versions_at_least_one_replaces_the_other_and_both_only_if_equally_new(
    one: Version, other: Version
) -> None:
    there, back = replaces(one, other), replaces(other, one)
    if there and back:
        assert isinstance(one, SnapshotVersion)
        assert isinstance(other, SnapshotVersion)
        assert (one.era, snapshot_order(one)) == (other.era, snapshot_order(other))
    if not there and not back:
        assert isinstance(one, LogVersion)
        assert isinstance(other, LogVersion)
        assert (one.era, one.commit_lsn, one.lsn) == (other.era, other.commit_lsn, other.lsn)


@given(log_versions(), log_versions())
def test_between_changes_exactly_one_wins_unless_they_are_one_change(
    one: LogVersion, other: LogVersion
) -> None:
    same = (one.era, one.commit_lsn, one.lsn) == (other.era, other.commit_lsn, other.lsn)
    assert replaces(one, other) + replaces(other, one) == (0 if same else 1)


@given(log_versions(), snapshot_versions())
def test_between_a_change_and_a_row_from_the_source_exactly_one_wins(
    change: LogVersion, row: SnapshotVersion
) -> None:
    assert replaces(change, row) is not replaces(row, change)


@given(st.one_of(st.tuples(*[log_versions()] * 3), st.tuples(*[snapshot_versions()] * 3)))
def test_versions_of_one_kind_are_in_one_order(three: tuple[Version, Version, Version]) -> None:
    for first, second, third in permutations(three):
        if replaces(third, second) and replaces(second, first):
            assert replaces(third, first)


@given(versions(), versions())
def test_a_sweep_removes_only_what_a_write_would_replace(floor: Version, stored: Version) -> None:
    assert not sweeps(floor, stored) or replaces(floor, stored)


@given(versions())
def test_nothing_sweeps_what_was_written_with_it(version: Version) -> None:
    assert not sweeps(version, version)


@given(versions())
def test_decode_is_the_inverse_of_encode(version: Version) -> None:
    assert decode(version.encode()) == version


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (CHANGE, "L:1:100:120:7"),
        (SNAPSHOT, "S:1:5:10:5,7"),
        (SnapshotVersion(0, 10, 10), "S:0:10:10:"),
        (LogVersion(0, 0, (1 << 64) - 1, (1 << 63) + 1), "L:0:0:18446744073709551615:9223372036854775809"),
    ],
)
def test_the_text_of_a_version_is_what_redis_holds(version: Version, text: str) -> None:
    assert version.encode() == text
    assert decode(text) == version


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: ascii(text)[:30])
def test_anything_else_is_not_a_version(text: str) -> None:
    with pytest.raises(ValueError, match="not a version"):
        decode(text)


@given(edited_texts())
def test_no_two_texts_are_the_same_version(text: str) -> None:
    try:
        version = decode(text)
    except ValueError:
        return
    assert version.encode() == text


XIDS = st.integers(0, (1 << 48) - 1)


@given(XIDS, st.integers(-(1 << 31) + 1, (1 << 31) - 1))
def test_an_xid_is_widened_to_the_one_within_half_an_epoch_of_the_anchor(near: int, distance: int) -> None:
    xid = near + distance
    if xid >= 0:
        assert widen_xid(xid % (1 << 32), 0, 50, [Anchor(0, 50, near)]) == xid


@pytest.mark.parametrize(
    ("lsn", "xid32", "wide"),
    [
        (100, (1 << 32) - 6, (1 << 32) - 6),
        (150, (1 << 32) - 1, (1 << 32) - 1),
        (150, 0, 1 << 32),
        (150, 3, (1 << 32) + 3),
        (199, 2**31, 2**31),
        (200, 2**31, (1 << 32) + 2**31),
        (1000, 2**31 + 1, (1 << 32) + 2**31 + 1),
        # Before the first anchor the first one is the nearest.
        (0, (1 << 32) - 7, (1 << 32) - 7),
    ],
)
def test_the_anchor_is_the_last_one_at_or_before_the_change(lsn: int, xid32: int, wide: int) -> None:
    anchors = [
        Anchor(0, 100, (1 << 32) - 5),
        Anchor(0, 200, (1 << 32) + 2**31 - 10),
        Anchor(1, 120, 3 * (1 << 32)),
    ]
    assert widen_xid(xid32, 0, lsn, anchors) == wide


def test_anchors_of_another_era_do_not_count() -> None:
    anchors = [Anchor(0, 100, 5), Anchor(0, 300, 9 << 32), Anchor(2, 200, 7 << 32)]
    assert widen_xid(6, 2, 400, anchors) == (7 << 32) + 6
    assert widen_xid(6, 2, 100, anchors) == (7 << 32) + 6
    assert widen_xid(6, 0, 250, anchors) == 6
    for era in (1, 3):
        with pytest.raises(LookupError, match=f"no xid anchor of era {era}"):
            widen_xid(6, era, 400, anchors)
    with pytest.raises(LookupError):
        widen_xid(6, 0, 400, [])
