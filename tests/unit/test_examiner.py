"""A repair that would remove most of an index asks a person first."""

import pytest

from daemon.errors import StopPipeline
from daemon.verify.examiner import refuse_emptying


@pytest.mark.parametrize(("removed", "documents"), [(0, 100), (50, 100), (99, 99), (1, 1), (1000, 2000)])
def test_a_part_of_an_index_or_all_of_a_small_one_may_be_removed(removed: int, documents: int) -> None:
    refuse_emptying("books", removed, documents)


@pytest.mark.parametrize(("removed", "documents"), [(51, 100), (100, 100), (1001, 2000)])
def test_more_than_half_of_an_index_is_not_removed(removed: int, documents: int) -> None:
    with pytest.raises(StopPipeline, match="livevec verify books --repair --yes"):
        refuse_emptying("books", removed, documents)
