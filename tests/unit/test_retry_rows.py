"""When the row that was read is not yet the one that was refused."""

import pytest

from daemon.core.version import LogVersion, SnapshotVersion, Version
from daemon.source.record import Coordinates
from workflows.retry.contract import Attempt, Letter
from workflows.retry.trials import too_early

SNAPSHOT = SnapshotVersion(1, 100, 110, (105,))


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        (LogVersion(1, 0, 0, 99), False),
        (LogVersion(1, 0, 0, 105), True),
        (LogVersion(1, 0, 0, 106), False),
        (LogVersion(1, 0, 0, 110), True),
        (LogVersion(0, 0, 0, 110), False),
        (SnapshotVersion(1, 120, 120), False),
        (None, False),
    ],
)
def test_a_row_is_read_again_later_while_its_change_is_not_visible(
    refused: Version | None, expected: bool
) -> None:
    version = refused.encode() if refused else ""
    letter = Letter("1", "1", "embedder_refused", version, 0.0, Coordinates("dead", 0, 0), None)
    assert too_early(Attempt(letter, look=False), SNAPSHOT) is expected
