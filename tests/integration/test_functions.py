"""What each function of functions.lua does, on a Redis with the search module."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import OutOfMemoryError, ResponseError

from daemon.core.version import LogVersion, SnapshotVersion
from daemon.index.layout import Layout
from daemon.index.writer import Delete, Put, Result, Touch
from tests.support.ordering.calls import Call, RaiseFloor, Sweep, library_source, with_version
from tests.support.ordering.versions import MALFORMED
from tests.support.redis_server import redis_server

LAYOUT = Layout("books", 3)
DIMENSION = 4
HOUR_MS = 3_600_000
DEADLINE_S = 10.0


def at(position: int) -> LogVersion:
    return LogVersion(0, position, position + 1, position)


def vector(*values: float) -> bytes:
    return np.array(values, dtype=np.float32).tobytes()


def document(identifier: str, position: int, *texts: str, **metadata: str) -> Put:
    """A row whose chunks have these texts; their vectors are told apart by the chunk's number."""
    chunks = tuple((text, vector(1, number, 0, 0)) for number, text in enumerate(texts))
    fields = tuple(metadata.items())
    return Put(identifier, at(position), f"hash of {texts}", f"hash of {fields}", fields, chunks)


def metadata_of(row: Put, position: int, absent: tuple[str, ...] = (), **metadata: str) -> Touch:
    """A metadata-only write planned for this row's text."""
    fields = tuple(metadata.items())
    return Touch(row.id, at(position), row.content_hash, f"hash of {fields}", fields, absent)


def deletion(identifier: str, position: int, marker_ttl_ms: int = HOUR_MS) -> Delete:
    return Delete(identifier, at(position), marker_ttl_ms)


class Books:
    """The index version `LAYOUT` as a test looks at it."""

    def __init__(self, client: Redis) -> None:
        self.client: Any = client

    def do(self, call: Call) -> Result:
        return Result(self.client.execute_command(*call.command(LAYOUT)))

    def chunk(self, identifier: str, number: int) -> dict[str, bytes]:
        found = self.client.hgetall(LAYOUT.chunk_key(identifier, number))
        return {name.decode(): value for name, value in found.items()}

    def bookkeeping(self, identifier: str) -> dict[str, str]:
        found = self.client.hgetall(LAYOUT.bookkeeping(identifier))
        return {name.decode(): value.decode() for name, value in found.items()}

    def marker_ttl_ms(self, identifier: str) -> int:
        ttl_ms: int = self.client.pttl(LAYOUT.bookkeeping(identifier))
        return ttl_ms

    def found(self, query: str, *arguments: str | bytes | int) -> set[bytes]:
        """Keys of the chunks that the search module finds."""
        command = ("FT.SEARCH", LAYOUT.index, query, "NOCONTENT", "LIMIT", 0, 1000, "DIALECT", 2)
        answer = self.client.execute_command(*command, *arguments)
        return {result[b"id"] for result in answer[b"results"]}

    def digest(self) -> bytes:
        """Of all keys and values."""
        digest: bytes = self.client.execute_command("DEBUG", "DIGEST")
        return digest


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    folder = tmp_path_factory.mktemp("redis")
    with redis_server(folder, search=True) as server, server.client() as client:
        client.function_load(library_source())
        yield client


@pytest.fixture
def books(client: Any) -> Books:
    client.flushall()
    client.execute_command(
        *("FT.CREATE", LAYOUT.index, "PREFIX", 1, LAYOUT.documents_prefix),
        *("SCHEMA", "color", "TAG"),
        *("embedding", "VECTOR", "HNSW", 6, "TYPE", "FLOAT32", "DIM", DIMENSION, "DISTANCE_METRIC", "L2"),
    )
    return Books(client)


class TestPut:
    def test_it_writes_each_chunk_and_the_bookkeeping(self, books: Books) -> None:
        row = document("7", 10, "one", "two", color="red")
        assert books.do(row) is Result.APPLIED
        assert books.bookkeeping("7") == {
            "v": "L:0:10:11:10",
            "h": row.content_hash,
            "m": row.metadata_hash,
            "n": "2",
        }
        assert books.chunk("7", 1) == {
            "id": b"7",
            "chunk": b"1",
            "text": b"two",
            "color": b"red",
            "embedding": vector(1, 1, 0, 0),
        }
        assert len(books.found("@color:{red}")) == 2

    def test_a_shorter_text_removes_the_surplus_chunks(self, books: Books) -> None:
        books.do(document("7", 10, *(f"part {number}" for number in range(40))))
        assert len(books.found("*")) == 40
        assert books.do(document("7", 20, "one", "two")) is Result.APPLIED
        assert books.found("*") == {LAYOUT.chunk_key("7", number).encode() for number in (0, 1)}
        assert books.client.dbsize() == 3

    def test_a_blank_text_leaves_no_chunk_and_is_still_known(self, books: Books) -> None:
        books.do(document("7", 10, "one", "two"))
        assert books.do(document("7", 20)) is Result.APPLIED
        assert books.found("*") == set()
        assert books.bookkeeping("7")["n"] == "0"
        assert books.do(document("7", 15, "older")) is Result.SUPERSEDED

    def test_what_an_earlier_row_had_does_not_stay(self, books: Books) -> None:
        books.do(document("7", 10, "one", color="red", size="9"))
        books.do(document("7", 20, "one", size="8"))
        assert set(books.chunk("7", 0)) == {"id", "chunk", "text", "embedding", "size"}
        assert books.found("@color:{red}") == set()

    def test_an_older_row_and_the_same_row_again_change_nothing(self, books: Books) -> None:
        row = document("7", 10, "one", color="red")
        books.do(row)
        before = books.digest()
        assert books.do(document("7", 9, "older", "and longer")) is Result.SUPERSEDED
        assert books.do(row) is Result.SUPERSEDED
        assert books.digest() == before

    def test_nul_bytes_in_a_text_and_a_vector_are_kept(self, books: Books) -> None:
        text, embedding = "nul \0 in \0\0 it\r\n", vector(0, 1, 0, 0)
        assert b"\0\0" in embedding
        books.do(Put("7", at(1), "h", "m", (("color", "\0"),), ((text, embedding),)))
        books.do(document("8", 1, "another"))
        stored = books.chunk("7", 0)
        assert stored["text"] == text.encode()
        assert stored["embedding"] == embedding
        nearest = books.found("*=>[KNN 1 @embedding $vector]", "PARAMS", 2, "vector", embedding)
        assert nearest == {LAYOUT.chunk_key("7", 0).encode()}

    @pytest.mark.parametrize("surplus", [-2, -1, 1, 2])
    def test_arguments_that_do_not_add_up_change_nothing(self, books: Books, surplus: int) -> None:
        books.do(document("7", 10, "one", "two"))
        before = books.digest()
        command = document("7", 20, "newer", "text").command(LAYOUT)
        command = command[:surplus] if surplus < 0 else [*command, *["more"] * surplus]
        with pytest.raises(ResponseError, match="LIVEVEC livevec_put: the arguments do not add up"):
            books.client.execute_command(*command)
        assert books.digest() == before


class TestTouch:
    def test_it_sets_and_removes_metadata_on_each_chunk_and_keeps_the_vector(self, books: Books) -> None:
        row = document("7", 10, "one", "two", color="red", size="9")
        books.do(row)
        touch = metadata_of(row, 20, ("size",), color="blue")
        assert books.do(touch) is Result.APPLIED
        for number, text in enumerate((b"one", b"two")):
            assert books.chunk("7", number) == {
                "id": b"7",
                "chunk": str(number).encode(),
                "text": text,
                "color": b"blue",
                "embedding": vector(1, number, 0, 0),
            }
        assert len(books.found("@color:{blue}")) == 2
        assert books.bookkeeping("7") == {
            "v": at(20).encode(),
            "h": row.content_hash,
            "m": touch.metadata_hash,
            "n": "2",
        }

    def test_metadata_that_is_stored_already_is_not_written_again(self, books: Books) -> None:
        """Any write to an indexed hash inserts its vector anew."""
        row = document("7", 10, "one", color="red")
        books.do(row)
        same = replace(metadata_of(row, 20), metadata_hash=row.metadata_hash, metadata=(("color", "blue"),))
        assert books.do(same) is Result.APPLIED
        assert books.chunk("7", 0)["color"] == b"red"
        assert books.bookkeeping("7")["v"] == at(20).encode()

    def test_the_version_moves_on_so_that_an_older_row_is_refused(self, books: Books) -> None:
        row = document("7", 10, "one")
        books.do(row)
        books.do(metadata_of(row, 20))
        assert books.do(document("7", 15, "older")) is Result.SUPERSEDED
        assert books.do(metadata_of(row, 15, color="red")) is Result.SUPERSEDED
        assert books.do(deletion("7", 15)) is Result.SUPERSEDED

    def test_it_is_refused_when_another_text_is_stored(self, books: Books) -> None:
        row = document("7", 10, "one")
        books.do(document("7", 15, "two"))
        before = books.digest()
        assert books.do(metadata_of(row, 20, color="red")) is Result.CONFLICT
        assert books.digest() == before

    def test_it_is_refused_when_nothing_is_stored_or_a_delete_marker(self, books: Books) -> None:
        row = document("7", 10, "one")
        assert books.do(metadata_of(row, 20, color="red")) is Result.CONFLICT
        assert books.client.dbsize() == 0
        books.do(row)
        books.do(deletion("7", 15))
        before = books.digest()
        assert books.do(metadata_of(row, 20, color="red")) is Result.CONFLICT
        assert books.digest() == before
        assert books.marker_ttl_ms("7") > 0

    @pytest.mark.parametrize("gone", [0, 1, 2])
    def test_it_is_refused_when_a_chunk_is_gone(self, books: Books, gone: int) -> None:
        row = document("7", 10, "one", "two", "three")
        books.do(row)
        books.client.delete(LAYOUT.chunk_key("7", gone))
        before = books.digest()
        assert books.do(metadata_of(row, 20, color="red")) is Result.CONFLICT
        assert books.digest() == before


class TestDelete:
    def test_it_removes_the_chunks_and_leaves_a_marker_that_expires(self, books: Books) -> None:
        books.do(document("7", 10, "one", "two"))
        assert books.do(deletion("7", 20, marker_ttl_ms=50_000)) is Result.APPLIED
        assert books.found("*") == set()
        assert books.client.keys("*") == [LAYOUT.bookkeeping("7").encode()]
        assert books.bookkeeping("7") == {"v": at(20).encode(), "x": "1"}
        assert 40_000 < books.marker_ttl_ms("7") <= 50_000

    def test_the_marker_refuses_what_is_older(self, books: Books) -> None:
        assert books.do(deletion("7", 20)) is Result.ABSENT
        assert books.do(document("7", 15, "older")) is Result.SUPERSEDED
        assert books.do(deletion("7", 15, marker_ttl_ms=HOUR_MS * 2)) is Result.SUPERSEDED
        assert books.marker_ttl_ms("7") <= HOUR_MS

    def test_a_newer_delete_of_what_is_deleted_lengthens_the_marker_s_life(self, books: Books) -> None:
        books.do(deletion("7", 20))
        assert books.do(deletion("7", 30, marker_ttl_ms=HOUR_MS * 2)) is Result.ABSENT
        assert books.marker_ttl_ms("7") > HOUR_MS

    def test_a_document_written_over_a_marker_does_not_expire(self, books: Books) -> None:
        books.do(deletion("7", 20))
        assert books.do(document("7", 30, "back")) is Result.APPLIED
        assert books.marker_ttl_ms("7") == -1
        assert "x" not in books.bookkeeping("7")
        assert len(books.found("*")) == 1

    def test_an_expired_marker_guards_nothing(self, books: Books) -> None:
        books.do(deletion("7", 20, marker_ttl_ms=1))
        deadline = time.monotonic() + DEADLINE_S
        while books.bookkeeping("7") and time.monotonic() < deadline:
            pass
        assert books.do(document("7", 15, "older")) is Result.APPLIED


class TestFloorAndSweep:
    def test_a_floor_refuses_what_it_beats_whether_or_not_it_is_stored(self, books: Books) -> None:
        row = document("7", 10, "one")
        books.do(row)
        assert books.do(RaiseFloor("7", at(20))) is Result.APPLIED
        before = books.digest()
        assert books.do(document("7", 15, "older")) is Result.SUPERSEDED
        assert books.do(metadata_of(row, 15)) is Result.SUPERSEDED
        assert books.do(deletion("7", 15)) is Result.SUPERSEDED
        assert books.do(RaiseFloor("7", at(15))) is Result.SUPERSEDED
        assert books.digest() == before
        assert books.do(document("7", 25, "newer")) is Result.APPLIED

    def test_a_sweep_removes_what_is_older_with_its_chunks_and_leaves_no_marker(self, books: Books) -> None:
        books.do(document("7", 10, "one", "two"))
        books.do(deletion("8", 10))
        books.do(document("9", 30, "newer"))
        assert books.do(Sweep("7", at(20))) is Result.APPLIED
        assert books.do(Sweep("8", at(20))) is Result.APPLIED
        assert books.do(Sweep("9", at(20))) is Result.SUPERSEDED
        assert books.do(Sweep("10", at(20))) is Result.ABSENT
        stem = LAYOUT.keys("9")[2]
        assert set(books.client.keys("*")) == {LAYOUT.bookkeeping("9").encode(), f"{stem}:0".encode()}

    def test_a_sweep_keeps_the_rows_read_at_its_own_snapshot(self, books: Books) -> None:
        snapshot = SnapshotVersion(0, 5, 10, (5, 7))
        books.do(replace(document("7", 0, "read at it"), version=snapshot))
        books.do(replace(document("8", 0, "read before"), version=SnapshotVersion(0, 5, 9, (5, 7))))
        assert books.do(Sweep("7", snapshot)) is Result.SUPERSEDED
        assert books.do(Sweep("8", snapshot)) is Result.APPLIED


IDS = (
    *("", " ", "a b", "a/b", "a%2Fb", "a:0", "a:0:0", "a", "7", "07", "{", "}", "{}", "{a}b", "}{", "}:"),
    *("it's", '"', "\\", "\n", "\r\n", "\t", "\0", "a\0b", "*", "[a-z]?", "é", "e\u0301", "مرحبا", "🦊"),
    *("lv:books:3:meta:", "{books.00}:a", "x" * 1024, "x" * 1023 + "{", "$-1", "-", "@color:{red}"),
)


class TestKeys:
    def test_no_key_collides_with_another_and_each_document_is_in_one_slot(self, books: Books) -> None:
        for number, identifier in enumerate(IDS):
            assert books.do(document(identifier, 10, f"text {number}", "more")) is Result.APPLIED
        assert len(books.found("*")) == 2 * len(IDS)
        assert books.client.dbsize() == 3 * len(IDS)
        for number, identifier in enumerate(IDS):
            bookkeeping, floor, stem = LAYOUT.keys(identifier)
            chunk = books.chunk(identifier, 0)
            assert (chunk["id"], chunk["text"]) == (identifier.encode(), f"text {number}".encode())
            assert LAYOUT.identifier(bookkeeping) == identifier
            slots = {key_slot(key.encode()) for key in (bookkeeping, floor, f"{stem}:0", f"{stem}:1")}
            assert len(slots) == 1

    def test_each_key_is_touched_deleted_and_swept_alone(self, books: Books) -> None:
        rows = [document(identifier, 10, "text", "more", color="red") for identifier in IDS]
        for row in rows:
            books.do(row)
        for number, row in enumerate(rows):
            assert books.do(metadata_of(row, 20, color="blue")) is Result.APPLIED
            assert len(books.found("@color:{blue}")) == 2
            call = deletion(row.id, 30) if number % 2 else Sweep(row.id, at(30))
            assert books.do(call) is Result.APPLIED
            assert len(books.found("*")) == 2 * (len(rows) - number - 1)


def calls_of(identifier: str) -> list[Call]:
    row = document(identifier, 20, "newer", "text", color="red")
    touch = replace(metadata_of(row, 20), content_hash=document(identifier, 10, "one").content_hash)
    return [row, touch, deletion(identifier, 20), RaiseFloor(identifier, at(20)), Sweep(identifier, at(20))]


CALL_NAMES = [type(call).__name__ for call in calls_of("7")]


class TestFailures:
    @pytest.mark.parametrize("which", range(len(CALL_NAMES)), ids=CALL_NAMES)
    @pytest.mark.parametrize("stored", [False, True], ids=["empty", "stored"])
    def test_a_malformed_version_is_a_clear_error_and_changes_nothing(
        self, books: Books, which: int, stored: bool
    ) -> None:
        if stored:
            books.do(document("7", 10, "one"))
            books.do(RaiseFloor("7", at(5)))
        before = books.digest()
        command = calls_of("7")[which].command(LAYOUT)
        for text in MALFORMED:
            with pytest.raises(ResponseError, match="LIVEVEC malformed version: ") as raised:
                books.client.execute_command(*with_version(command, text))
            assert len(str(raised.value)) < 300
            assert books.digest() == before

    @pytest.mark.parametrize("which", range(len(CALL_NAMES)), ids=CALL_NAMES)
    def test_a_stored_version_that_is_none_is_a_clear_error_and_changes_nothing(
        self, books: Books, which: int
    ) -> None:
        bookkeeping, floor, _ = LAYOUT.keys("7")
        call = calls_of("7")[which]
        books.do(document("7", 10, "one"))
        if isinstance(call, RaiseFloor):
            books.client.set(floor, "nonsense")
        else:
            books.client.hset(bookkeeping, "v", "nonsense")
        before = books.digest()
        with pytest.raises(ResponseError, match="LIVEVEC malformed version: nonsense"):
            books.do(call)
        assert books.digest() == before

    def test_out_of_memory_refuses_what_needs_more_and_lets_through_what_frees_some(
        self, books: Books
    ) -> None:
        for identifier in ("7", "8"):
            books.do(document(identifier, 10, "one"))
        before = books.digest()
        books.client.config_set("maxmemory", 1)
        try:
            for call in calls_of("7"):
                if isinstance(call, Put | Touch | RaiseFloor):
                    with pytest.raises(OutOfMemoryError):
                        books.do(call)
            assert books.digest() == before
            assert books.do(deletion("7", 20)) is Result.APPLIED
            assert books.do(Sweep("8", at(20))) is Result.APPLIED
        finally:
            books.client.config_set("maxmemory", 0)
        assert books.found("*") == set()
