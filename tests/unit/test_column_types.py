"""Types that the reader converts, and which the preflight therefore admits."""

import pytest

from daemon.source.postgres.values import ColumnType, codec


@pytest.mark.parametrize(
    "column",
    [
        ColumnType("hstore"),
        ColumnType("name"),
        ColumnType("tstzrange"),
        ColumnType("vector"),
        ColumnType("date", array=True),
        ColumnType("numeric", modifier=((4 << 16) | (-2 & 0x7FF)) + 4),
    ],
    ids=lambda column: column.name,
)
def test_a_type_that_cannot_be_made_equal_has_no_codec(column: ColumnType) -> None:
    assert codec(column) is None


def test_a_numeric_with_its_usual_scale_has_a_codec() -> None:
    assert codec(ColumnType("numeric", modifier=((10 << 16) | 2) + 4)) is not None
