"""Reads what Redis holds of documents, without trusting that it is whole."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from daemon.core.plan import Stored
from daemon.index import schema
from daemon.index.connection import Client, IndexMissing, pipelined, translated
from daemon.index.keyspace import Keyspace
from daemon.index.writer import IndexWriter

_SEARCHED_MAX = 500
"""Hashes asked for in one search, which holds up the others."""
_COUNTED_MAX = 1000
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
class Bookkeeping:
    """`digests`: of the text (with its embedding space) and of the metadata; None: no document is there."""

    digests: tuple[str, str] | None
    chunks: int


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of an index version by what they are.

    Attributes:
        documents: ids of which there is bookkeeping, be it a deleted document's marker.
        chunks: document id and number of each hash.
        foreign: among the documents, written by somebody else.
    """

    documents: list[str]
    chunks: list[tuple[str, int]]
    foreign: list[str]


class StoredDocuments:
    """Reads one index version."""

    def __init__(self, client: Client, writer: IndexWriter) -> None:
        self.keyspace = Keyspace(client, writer.layout)
        self._client = client
        self._writer = writer
        self.layout = writer.layout

    async def read(self, ids: Sequence[str]) -> list[StoredDocument]:
        """Read bookkeeping and chunks of each id; three round trips, so a change in between may show."""
        stored = await self._writer.lookup(ids)
        counts = await self._pipelined([("HGET", self.layout.bookkeeping(one), "n") for one in ids])
        keys = [
            [self.layout.chunk_key(one, number) for number in range(int(count or 0))]
            for one, count in zip(ids, counts, strict=True)
        ]
        hashes = iter(await self._pipelined([("HGETALL", key) for of_one in keys for key in of_one]))
        return [
            StoredDocument(bookkeeping, tuple(_chunk(next(hashes)) for _ in of_one))
            for bookkeeping, of_one in zip(stored, keys, strict=True)
        ]

    async def bookkeeping(self, ids: Sequence[str]) -> list[Bookkeeping]:
        """Read the digests and the number of chunks of each document, in one round trip."""
        commands = [("HMGET", self.layout.bookkeeping(identifier), "h", "m", "n") for identifier in ids]
        return [
            Bookkeeping((text.decode(), metadata.decode()) if text and metadata else None, int(count or 0))
            for text, metadata, count in await self._pipelined(commands)
        ]

    async def count(self) -> int:
        """Count the documents; those that change meanwhile may be counted twice or not."""
        documents = 0
        async for ids in self._writer.ids(_COUNTED_MAX):
            documents += sum(held.digests is not None for held in await self.bookkeeping(ids))
        return documents

    async def vector_sizes(self, keys: Sequence[str]) -> list[int]:
        """Return the bytes of each hash's vector; 0 where there is none."""
        sizes = await self._pipelined([("HSTRLEN", key, "embedding") for key in keys])
        return [int(size) for size in sizes]

    async def values(self, keys: Sequence[str], field: str) -> list[bytes | None]:
        """Read one field of each hash; None where there is none."""
        return await self._pipelined([("HGET", key, field) for key in keys])

    async def existing(self, keys: Sequence[str]) -> list[bool]:
        """Return whether each hash is there."""
        return [bool(count) for count in await self._pipelined([("EXISTS", key) for key in keys])]

    async def built(self, on_wait: Callable[[int], None]) -> None:
        """Wait until an index that was just made covers what was there before."""
        while (info := await schema.info(self._client, self.layout.index)) is not None and info.building:
            on_wait(info.documents)
            await asyncio.sleep(_BUILDING_POLL_S)

    async def searchable(self, keys: Sequence[str]) -> set[str]:
        """Return those of these hashes that a search finds; none where there is no index."""
        searchable: set[str] = set()
        for start in range(0, len(keys), _SEARCHED_MAX):
            part = keys[start : start + _SEARCHED_MAX]
            query = ("FT.SEARCH", self.layout.index, "*", "NOCONTENT", "LIMIT", 0, len(part))
            try:
                with translated():
                    reply = await self._client.execute_command(*query, "INKEYS", len(part), *part)
            except IndexMissing:
                return set()
            searchable |= {hit[b"id"].decode("utf-8", "replace") for hit in reply[b"results"]}
        return searchable

    async def prune(self, hashes: Sequence[tuple[str, int]]) -> int:
        """Remove hashes of (id, chunk number) beyond those that their document has; return how many."""
        calls = []
        for identifier, number in hashes:
            bookkeeping = self.layout.bookkeeping(identifier)
            calls.append(("EVAL", _PRUNE, 2, bookkeeping, self.layout.chunk_key(identifier, number), number))
        return sum(cast(Sequence[int], await self._pipelined(calls)))

    def sorted_out(self, keys: Iterable[str]) -> Keys:
        """Sort keys of the index version by what they are."""
        sorted_keys = Keys([], [], [])
        for key in keys:
            if key.startswith(self.layout.bookkeeping_prefix):
                sorted_keys.documents.append(self.layout.identifier(key))
            elif key.startswith(self.layout.documents_prefix):
                _, _, tail = key.removeprefix(self.layout.documents_prefix).partition("}:")
                identifier, _, number = tail.rpartition(":")
                if number.isdecimal() and self.layout.chunk_key(identifier, int(number)) == key:
                    sorted_keys.chunks.append((identifier, int(number)))
                else:
                    sorted_keys.foreign.append(key)
        return sorted_keys

    async def _pipelined(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        return await pipelined(self._client, commands) if commands else []


def _chunk(fields: Mapping[bytes, bytes]) -> StoredChunk | None:
    if not fields:
        return None
    plain = {
        name.decode("utf-8", "replace"): value.decode("utf-8", "surrogateescape")
        for name, value in fields.items()
        if name != b"embedding"
    }
    return StoredChunk(plain, fields.get(b"embedding"))
