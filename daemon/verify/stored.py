"""What Redis holds of documents, read without trusting that it is whole."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from daemon.errors import StopProcess
from daemon.index.connection import Client, translated
from daemon.index.writer import IndexWriter, Stored, glob_escaped

_SCAN_COUNT = 1000
_BUILDING_POLL_S = 0.2
# A chunk goes only if the document does not have it: checked and done in one step.
_PRUNE = """
local n = tonumber(redis.call('HGET', KEYS[1], 'n') or '0')
if tonumber(ARGV[1]) < n then return 0 end
return redis.call('UNLINK', KEYS[2])
"""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """One hash: its fields but the vector, and the vector; None where the hash has none."""

    fields: Mapping[str, str]
    vector: bytes | None


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """`stored`: its bookkeeping; `chunks`: as many as that says, None for each that is gone."""

    stored: Stored | None
    chunks: tuple[StoredChunk | None, ...]

    @property
    def present(self) -> bool:
        return self.stored is not None and self.stored.content_hash is not None


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """Hashes that the index covers, and whether it is still being built."""

    documents: int
    building: bool


class StoredDocuments:
    """Reads one index version."""

    def __init__(self, client: Client, writer: IndexWriter) -> None:
        self._client = client
        self._writer = writer
        self._layout = writer.layout

    async def read(self, ids: Sequence[str]) -> list[StoredDocument]:
        """Bookkeeping and chunks of each id; three round trips, so a change in between may show."""
        stored = await self._writer.lookup(ids)
        counts = await self._pipelined([("HGET", self._layout.bookkeeping(one), "n") for one in ids])
        keys = [
            [self.key(one, number) for number in range(int(count or 0))]
            for one, count in zip(ids, counts, strict=True)
        ]
        hashes = iter(await self._pipelined([("HGETALL", key) for of_one in keys for key in of_one]))
        return [
            StoredDocument(bookkeeping, tuple(_chunk(next(hashes)) for _ in of_one))
            for bookkeeping, of_one in zip(stored, keys, strict=True)
        ]

    async def ids(self, count: int) -> AsyncIterator[list[str]]:
        """See IndexWriter.ids."""
        async for ids in self._writer.ids(count):
            yield ids

    async def present(self, ids: Sequence[str]) -> list[bool]:
        """Whether each id has a document, and not only the marker of a deleted one."""
        return [
            stored is not None and stored.content_hash is not None
            for stored in await self._writer.lookup(ids)
        ]

    async def hashes(self, count: int) -> AsyncIterator[list[tuple[str, str, int]]]:
        """Every hash among the documents, in batches: key, document id and chunk number.

        The id is empty where the key is none that livevec writes.
        """
        pattern = glob_escaped(self._layout.documents_prefix) + "*"
        batch = []
        with translated():
            async for key in self._client.scan_iter(match=pattern, count=_SCAN_COUNT):
                batch.append(self._parsed(key.decode("utf-8", "replace")))
                if len(batch) >= count:
                    yield batch
                    batch = []
        if batch:
            yield batch

    async def chunk_counts(self, ids: Sequence[str]) -> list[int | None]:
        """How many chunks each document has by its bookkeeping; None where there is none."""
        found = await self._pipelined([("HGET", self._layout.bookkeeping(one), "n") for one in ids])
        return [None if count is None else int(count) for count in found]

    async def existing(self, keys: Sequence[str]) -> list[bool]:
        """Whether each hash is there."""
        return [bool(found) for found in await self._pipelined([("EXISTS", key) for key in keys])]

    def key(self, identifier: str, number: int) -> str:
        """Of one chunk's hash."""
        return f"{self._layout.keys(identifier)[2]}:{number}"

    async def info(self) -> IndexInfo | None:
        """What the index says of itself; None where there is no index."""
        try:
            with translated():
                info = await cast(Any, self._client.ft(self._layout.index)).info()
        except StopProcess:
            return None
        plain = {key.decode() if isinstance(key, bytes) else key: value for key, value in info.items()}
        return IndexInfo(int(plain["num_docs"]), float(plain["percent_indexed"]) < 1)

    async def built(self, on_wait: Callable[[int], None]) -> IndexInfo | None:
        """Wait until an index that was just made covers what was there before."""
        while (info := await self.info()) is not None and info.building:
            on_wait(info.documents)
            await asyncio.sleep(_BUILDING_POLL_S)
        return info

    async def searchable(self, keys: Sequence[str]) -> set[str]:
        """Those of these hashes that a search finds; none where there is no index."""
        if not keys:
            return set()
        query = ("FT.SEARCH", self._layout.index, "*", "NOCONTENT", "LIMIT", 0, len(keys))
        try:
            with translated():
                reply = await self._client.execute_command(*query, "INKEYS", len(keys), *keys)
        except StopProcess:
            if await self.info() is None:
                return set()
            raise
        return set(_keys(reply))

    async def prune(self, hashes: Sequence[tuple[str, int]]) -> int:
        """Remove hashes of (id, chunk number) beyond those that their document has; answers how many."""
        calls = []
        for identifier, number in hashes:
            bookkeeping = self._layout.bookkeeping(identifier)
            calls.append(("EVAL", _PRUNE, 2, bookkeeping, self.key(identifier, number), number))
        return sum(cast(Sequence[int], await self._pipelined(calls)))

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove keys that livevec did not write."""
        await self._pipelined([("UNLINK", key) for key in keys])

    def _parsed(self, key: str) -> tuple[str, str, int]:
        _, _, rest = key.removeprefix(self._layout.documents_prefix).partition("}:")
        identifier, _, number = rest.rpartition(":")
        if not number.isdecimal() or self.key(identifier, int(number)) != key:
            return key, "", 0
        return key, identifier, int(number)

    async def _pipelined(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        if not commands:
            return []
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        with translated():
            return await pipe.execute()


def _chunk(fields: Mapping[bytes, bytes]) -> StoredChunk | None:
    if not fields:
        return None
    plain = {
        name.decode("utf-8", "replace"): value.decode("utf-8", "surrogateescape")
        for name, value in fields.items()
        if name != b"embedding"
    }
    return StoredChunk(plain, fields.get(b"embedding"))


def _keys(reply: Any) -> list[str]:
    """RESP3 answers a map with `results`, RESP2 a list: the total, then keys."""
    if isinstance(reply, Mapping):
        plain = {_text(name): value for name, value in reply.items()}
        return [
            _text(value) for one in plain["results"] for name, value in one.items() if _text(name) == "id"
        ]
    return [_text(key) for key in reply[1:]]


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
