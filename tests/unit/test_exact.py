"""Exact search, whatever batches the vectors come in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.core.vectors import NearestOf, distances


def test_distances_are_those_of_the_index() -> None:
    query, other = np.array([[3.0, 4.0]], np.float32), np.array([[4.0, 3.0], [-3.0, -4.0]], np.float32)
    np.testing.assert_allclose(distances(query, other, "cosine"), [[0.04, 2.0]], atol=1e-6)
    np.testing.assert_allclose(distances(query, other, "l2"), [[2.0, 100.0]], atol=1e-5)
    np.testing.assert_allclose(distances(query, other, "ip"), [[-23.0, 26.0]], atol=1e-5)


def test_a_vector_without_a_direction_is_near_to_nothing() -> None:
    zero = np.zeros((1, 2), np.float32)
    np.testing.assert_array_equal(distances(np.ones((1, 2), np.float32), zero, "cosine"), [[1.0]])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(1, 25), st.sampled_from(["cosine", "l2", "ip"]), st.integers(0, 99))
def test_batches_give_what_all_vectors_at_once_do(count: int, size: int, metric: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    queries = random.normal(size=(3, 8)).astype(np.float32)
    vectors = random.normal(size=(count, 8)).astype(np.float32)
    nearest = NearestOf(queries, metric, 5)
    for start in range(0, count, size):
        part = vectors[start : start + size]
        nearest.add([str(start + number) for number in range(len(part))], part)
    assert nearest.vectors == count
    wanted = np.argsort(distances(queries, vectors, metric), axis=1)[:, :5] if count else np.empty((3, 0))
    for query in range(3):
        assert nearest.names(query) == [str(int(number)) for number in wanted[query]]


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b"]])
def test_fewer_vectors_than_wanted_are_all_there_is(names: list[str]) -> None:
    nearest = NearestOf(np.ones((1, 2), np.float32), "cosine", 10)
    if names:
        nearest.add(names, np.ones((len(names), 2), np.float32))
    assert nearest.names(0) == names
