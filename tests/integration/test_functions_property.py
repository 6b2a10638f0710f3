"""functions.lua and `daemon.core.version` are one rule: the same generated calls, the same answers and keys."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from daemon.core.version import LogVersion, Version, decode, replaces, sweeps
from daemon.index.layout import Layout, bucket_of
from daemon.index.writer import Delete, Put, Result, Touch
from tests.support.ordering.calls import Call, RaiseFloor, Sweep, library_source, with_version
from tests.support.ordering.functions_twin import FunctionsTwin, Keyspace
from tests.support.ordering.versions import edited_texts, versions
from tests.support.redis_server import redis_server

LAYOUT = Layout("property", 1)
MARKER_TTL_MS = 1_000_000
TTL_TOLERANCE_MS = 300_000
CHUNKS_MAX = 3

# Two documents of one bucket and one of another; an id is no prefix of another's chunk.
IDS = ("7", next(f"7:0 {n}" for n in range(10_000) if bucket_of(f"7:0 {n}") == bucket_of("7")), "{x}/\n")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("redis")
    with redis_server(folder, search=False) as server, server.client() as client:
        client.function_load(library_source())
        yield client


def many(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
    )


def put(identifier: str, version: Version) -> Put:
    return Put(identifier, version, "hash", "", (), (("text", b"vector"),))


@many(300)
@given(st.lists(versions(), min_size=2, max_size=8, unique=True))
def test_each_version_replaces_and_sweeps_in_redis_what_it_does_in_python(
    client: Any, found: list[Version]
) -> None:
    pairs = [(write, stored) for write in found for stored in found]
    pipe = client.pipeline(transaction=False)
    pipe.flushdb()
    for number, (write, stored) in enumerate(pairs):
        # Layouts of their own, so that floors are not shared.
        for name, first, second in (
            ("written", put("1", stored), put("1", write)),
            ("swept", put("1", stored), Sweep("1", write)),
            ("floored", RaiseFloor("1", stored), put("1", write)),
            ("raised", RaiseFloor("1", stored), RaiseFloor("1", write)),
        ):
            layout = Layout(name, number)
            pipe.execute_command(*first.command(layout))
            pipe.execute_command(*second.command(layout))
    answers = pipe.execute()[1:]
    assert answers[0::2] == [Result.APPLIED] * 4 * len(pairs)
    for number, (write, stored) in enumerate(pairs):
        wins = replaces(write, stored)
        expected = [wins, sweeps(write, stored), wins, wins]
        assert answers[8 * number + 1 : 8 * number + 8 : 2] == expected, f"{write} against {stored}"


@st.composite
def puts(draw: st.DrawFn) -> Put:
    chunks = draw(st.integers(0, CHUNKS_MAX))
    text = draw(st.sampled_from("ab"))
    metadata = draw(st.sampled_from(((), (("color", "red"),), (("color", "blue"), ("size", "9")))))
    return Put(
        draw(st.sampled_from(IDS)),
        draw(versions()),
        f"{text}{chunks}",
        f"m{len(metadata)}",
        metadata,
        tuple((f"{text} {number}", bytes([0, 255, number])) for number in range(chunks)),
    )


@st.composite
def touches(draw: st.DrawFn) -> Touch:
    metadata = draw(st.sampled_from(((), (("color", "green"),), (("size", "1"), ("new", "n")))))
    absent = draw(st.sampled_from(((), ("size",), ("color", "unheard-of"))))
    return Touch(
        draw(st.sampled_from(IDS)),
        draw(versions()),
        draw(st.sampled_from("ab")) + str(draw(st.integers(0, CHUNKS_MAX))),
        draw(st.sampled_from(("m0", "m1", "t"))),
        metadata,
        absent,
    )


def calls() -> st.SearchStrategy[Call]:
    ids = st.sampled_from(IDS)
    return st.one_of(
        puts(),
        touches(),
        st.builds(Delete, ids, versions(), st.just(MARKER_TTL_MS)),
        st.builds(RaiseFloor, ids, versions()),
        st.builds(Sweep, ids, versions()),
    )


@st.composite
def touched_puts(draw: st.DrawFn) -> list[Call]:
    """A document and a metadata-only write that was planned for it."""
    document = draw(puts())
    touch = draw(touches())
    planned = Touch(
        document.id, touch.version, document.content_hash, touch.metadata_hash, touch.metadata, touch.absent
    )
    return [document, planned]


def sequences() -> st.SearchStrategy[list[Call]]:
    parts = st.one_of(calls().map(lambda call: [call]), touched_puts())
    return st.lists(parts, min_size=3, max_size=16).map(
        lambda parts: [call for part in parts for call in part]
    )


def fcall(twin: FunctionsTwin, call: Call) -> Result:
    """The call, as Redis gets it."""
    _, name, count, *rest = call.command(LAYOUT)
    texts = [part if isinstance(part, bytes) else str(part).encode() for part in rest]
    assert isinstance(count, int)
    return Result(twin.call(str(name), [key.decode() for key in texts[:count]], texts[count:]))


@many(1200)
@given(sequences())
def test_a_sequence_of_calls_leaves_in_redis_what_it_leaves_in_python(
    client: Any, sequence: list[Call]
) -> None:
    keyspace = Keyspace()
    twin = FunctionsTwin(keyspace)
    keys = [LAYOUT.keys(identifier) for identifier in IDS]
    hashes = [bookkeeping for bookkeeping, _, _ in keys]
    hashes += [f"{stem}:{number}" for _, _, stem in keys for number in range(CHUNKS_MAX)]
    floors = [floor for _, floor, _ in keys]
    pipe = client.pipeline(transaction=False)
    pipe.flushdb()
    for call in sequence:
        pipe.execute_command(*call.command(LAYOUT))
    for key in hashes:
        pipe.hgetall(key)
    for key in floors:
        pipe.get(key)
    for key in hashes:
        pipe.pttl(key)
    pipe.dbsize()
    answers = iter(pipe.execute()[1:])

    assert [Result(next(answers)) for _ in sequence] == [fcall(twin, call) for call in sequence]
    found = {key: value for key in (*hashes, *floors) if (value := next(answers))}
    assert found == keyspace.values
    ttls_ms = {key: ttl_ms for key in hashes if (ttl_ms := next(answers)) >= 0}
    expected_ms = {key: int(1000 * at_s) for key, at_s in keyspace.expires_at_s.items()}
    assert ttls_ms == pytest.approx(expected_ms, abs=TTL_TOLERANCE_MS)
    assert next(answers) == len(keyspace.values), "a key that no call should make"


@many(400)
@given(st.lists(edited_texts(), min_size=1, max_size=10))
@example(["S:0:1:2:"])
def test_redis_takes_for_a_version_what_python_does(client: Any, texts: list[str]) -> None:
    pipe = client.pipeline(transaction=False)
    pipe.flushdb()
    for number, text in enumerate(texts):
        call = put("1", LogVersion(0, 0, 0, 0)).command(Layout("text", number))
        pipe.execute_command(*with_version(call, text))
    for text, answer in zip(texts, pipe.execute(raise_on_error=False)[1:], strict=True):
        try:
            decode(text)
        except ValueError:
            assert isinstance(answer, ResponseError), f"{text!r} was taken"
            assert "LIVEVEC malformed version" in str(answer)
        else:
            assert answer == Result.APPLIED, f"{text!r} was refused"
