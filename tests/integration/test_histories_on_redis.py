"""Random histories through the real functions in a real Redis, whole and with each part of the rule broken."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from redis import Redis

from tests.support.ordering.calls import library_source
from tests.support.ordering.function_histories import Conditions, wrong_histories
from tests.support.ordering.mutations import MUTATIONS, Mutation
from tests.support.ordering.redis_index import RedisIndex
from tests.support.redis_server import redis_server

BLOCK = 150
HISTORIES_MAX = 600


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    folder: Path = tmp_path_factory.mktemp("redis")
    with redis_server(folder, search=False) as server, server.client() as client:
        yield client


BLOCKS = [(first_seed, False) for first_seed in range(1, 1501, BLOCK)]
BLOCKS += [(first_seed, True) for first_seed in range(1, 451, BLOCK)]


@pytest.mark.parametrize(("first_seed", "certain"), BLOCKS)
def test_at_rest_the_index_in_redis_equals_the_table(client: Redis, first_seed: int, certain: bool) -> None:
    client.function_load(library_source(), replace=True)
    seeds = range(first_seed, first_seed + BLOCK)
    wrong = wrong_histories(seeds, lambda: RedisIndex(client), Conditions(certain=certain))
    assert list(islice(wrong, 3)) == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_with_any_part_of_the_rule_broken_a_row_is_wrong(client: Redis, mutation: Mutation) -> None:
    conditions = Conditions(
        faults=mutation.faults, certain=mutation.certain, xmin_is_the_lsn=mutation.xmin_is_the_lsn
    )
    client.function_load(mutation.of(library_source()), replace=True)
    seeds = range(mutation.first_seed, mutation.first_seed + HISTORIES_MAX)
    wrong = next(iter(wrong_histories(seeds, lambda: RedisIndex(client), conditions)), None)
    assert wrong is not None, f"no history is the worse for it: {mutation.broken}"
    assert wrong.table != wrong.index
    client.function_load(library_source(), replace=True)
    assert list(wrong_histories([wrong.seed], lambda: RedisIndex(client), conditions)) == []
