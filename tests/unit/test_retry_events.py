"""Whether the record at a dead letter's place is the one that was refused."""

import pytest

from daemon.source.record import Coordinates, Record
from workflows.retry.contract import Letter
from workflows.retry.trials import is_another

DEAD_LETTERED_AT_S = 1000.0


@pytest.mark.parametrize(
    ("document", "key", "appended_at_s", "expected"),
    [
        ("a", b"a", 999.0, False),
        ("a", b"b", 999.0, True),
        ("a", None, 999.0, True),
        ("", b"b", 999.0, False),
        ("a", b"a", 1030.0, False),  # clocks of two machines
        ("a", b"a", 1100.0, True),  # written after the dead letter: the topic was made anew
    ],
)
def test_a_record_of_a_topic_that_was_made_anew_is_not_taken_for_the_refused_one(
    document: str, key: bytes | None, appended_at_s: float, expected: bool
) -> None:
    place = Coordinates("notes", 0, 7)
    letter = Letter("a", document, "oversized_text", "", DEAD_LETTERED_AT_S, Coordinates("dead", 0, 0), place)
    record = Record("notes", 0, 7, key, b"{}", (), appended_at_s, appended_at_s)
    assert is_another(letter, record) is expected
