"""What functions.lua does to Redis, key by key, under `daemon.core.version`."""

from daemon.core.version import Version, replaces, sweeps
from daemon.index.layout import Layout
from daemon.index.writer import Delete, Put, Result, Touch
from tests.support.ordering.calls import Call, RaiseFloor, Sweep


class FunctionsTwin:
    """The keys that the calls leave behind.

    Attributes:
        hashes: bookkeeping and chunks, by key.
        floors: by key.
        ttls_ms: of the keys that expire.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._versions: dict[str, Version] = {}
        self.hashes: dict[str, dict[bytes, bytes]] = {}
        self.floors: dict[str, Version] = {}
        self.ttls_ms: dict[str, int] = {}

    def apply(self, call: Call) -> Result:
        bookkeeping, floor, stem = self._layout.keys(call.id)
        if isinstance(call, RaiseFloor):
            return self._raise_floor(floor, call.version)
        if isinstance(call, Sweep):
            return self._sweep(bookkeeping, stem, call.version)
        beaten = replaces(call.version, self._versions.get(bookkeeping))
        if not beaten or not replaces(call.version, self.floors.get(floor)):
            return Result.SUPERSEDED
        match call:
            case Put():
                return self._put(bookkeeping, stem, call)
            case Touch():
                return self._touch(bookkeeping, stem, call)
            case Delete():
                return self._delete(bookkeeping, stem, call)

    def _put(self, bookkeeping: str, stem: str, put: Put) -> Result:
        self._drop_chunks(bookkeeping, stem)
        for number, (text, embedding) in enumerate(put.chunks):
            fields = (("id", put.id), ("chunk", str(number)), ("text", text), *put.metadata)
            self.hashes[f"{stem}:{number}"] = {b"embedding": embedding} | _encoded(dict(fields))
        self._note(bookkeeping, put.version)
        hashes = {"h": put.content_hash, "m": put.metadata_hash, "n": str(len(put.chunks))}
        self.hashes[bookkeeping] = _encoded({"v": put.version.encode()} | hashes)
        self.ttls_ms.pop(bookkeeping, None)
        return Result.APPLIED

    def _touch(self, bookkeeping: str, stem: str, touch: Touch) -> Result:
        stored = self.hashes.get(bookkeeping, {})
        if stored.get(b"h") != touch.content_hash.encode():
            return Result.CONFLICT
        chunks = [self.hashes.get(f"{stem}:{number}") for number in range(int(stored[b"n"]))]
        if None in chunks:
            return Result.CONFLICT
        if stored[b"m"] != touch.metadata_hash.encode():
            for chunk in filter(None, chunks):
                chunk.update(_encoded(dict(touch.metadata)))
                for name in touch.absent:
                    chunk.pop(name.encode(), None)
        self._note(bookkeeping, touch.version)
        stored.update(_encoded({"v": touch.version.encode(), "m": touch.metadata_hash}))
        return Result.APPLIED

    def _delete(self, bookkeeping: str, stem: str, delete: Delete) -> Result:
        there = b"h" in self.hashes.get(bookkeeping, {})
        self._drop_chunks(bookkeeping, stem)
        self._note(bookkeeping, delete.version)
        self.hashes[bookkeeping] = _encoded({"v": delete.version.encode(), "x": "1"})
        self.ttls_ms[bookkeeping] = delete.marker_ttl_ms
        return Result.APPLIED if there else Result.ABSENT

    def _raise_floor(self, floor: str, version: Version) -> Result:
        if not replaces(version, self.floors.get(floor)):
            return Result.SUPERSEDED
        self.floors[floor] = version
        return Result.APPLIED

    def _sweep(self, bookkeeping: str, stem: str, version: Version) -> Result:
        stored = self._versions.get(bookkeeping)
        if stored is None:
            return Result.ABSENT
        if not sweeps(version, stored):
            return Result.SUPERSEDED
        self._drop_chunks(bookkeeping, stem)
        del self._versions[bookkeeping], self.hashes[bookkeeping]
        self.ttls_ms.pop(bookkeeping, None)
        return Result.APPLIED

    def _note(self, bookkeeping: str, version: Version) -> None:
        self._versions[bookkeeping] = version

    def _drop_chunks(self, bookkeeping: str, stem: str) -> None:
        for number in range(int(self.hashes.get(bookkeeping, {}).get(b"n", b"0"))):
            self.hashes.pop(f"{stem}:{number}", None)


def _encoded(fields: dict[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in fields.items()}
