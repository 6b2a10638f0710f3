"""An index in a real Redis, under functions.lua."""

from collections.abc import Callable
from itertools import count
from typing import Any

from redis import Redis

from daemon.core.version import Version
from daemon.index.layout import Layout, bucket_of
from daemon.index.writer import Delete, Put, Result, Touch
from tests.support.ordering.calls import Call, RaiseFloor, Sweep
from tests.support.ordering.index import Stored

# The real clock must not end a marker's life within a history: `expire` does, on the history's clock.
_MARKER_TTL_MS = 3_600_000

# A text is its content hash; each has another number of chunks, so that a surplus one would be seen.
CHUNKS = {"A": ("A",), "B": ("B, begin", "B, end"), "C": ("C, begin", "C, middle", "C, end")}


def _of_the_same_bucket(identifier: str) -> str:
    bucket = bucket_of(identifier)
    return next(other for n in count() if bucket_of(other := f"{identifier} {n}") == bucket)


# Two buckets with two documents each.
_FIRST, _SECOND = "7", 'a/b {c} "d"\n%:0'
IDENTIFIERS = (_FIRST, _of_the_same_bucket(_FIRST), _SECOND, _of_the_same_bucket(_SECOND))


class RedisIndex:
    """Empties the database it is given, which must have the function library."""

    def __init__(self, client: Redis) -> None:
        # redis-py's types say bytes | str for what is always bytes here.
        self._client: Any = client
        self._layout = Layout("history", 1)
        self._keys = [self._layout.keys(identifier) for identifier in IDENTIFIERS]
        self._expires_s: dict[int, int] = {}
        client.flushdb()

    def put(self, key: int, version: Version, text: str) -> Result:
        chunks = tuple((chunk, b"\0\1\2\3") for chunk in CHUNKS[text])
        return self._call(Put(IDENTIFIERS[key], version, text, "", (), chunks))

    def touch(self, key: int, version: Version, planned_text: str) -> Result:
        return self._call(Touch(IDENTIFIERS[key], version, planned_text, "", (), ()))

    def delete(self, key: int, version: Version, expires_s: int) -> Result:
        result = self._call(Delete(IDENTIFIERS[key], version, _MARKER_TTL_MS))
        if result is not Result.SUPERSEDED:
            self._expires_s[key] = expires_s
        return result

    def raise_floor(self, key: int, version: Version) -> None:
        self._call(RaiseFloor(IDENTIFIERS[key], version))

    def sweep(self, key: int, version: Version) -> None:
        self._call(Sweep(IDENTIFIERS[key], version))

    def stored(self, key: int) -> Stored | None:
        version, content_hash = self._client.hmget(self._keys[key][0], "v", "h")
        if version is None:
            return None
        return Stored(None if content_hash is None else content_hash.decode())

    def expire(self, now_s: int) -> None:
        for key, expires_s in list(self._expires_s.items()):
            if expires_s <= now_s:
                del self._expires_s[key]
                # What Redis would let expire, a document that was not made to persist included.
                if self._client.pttl(self._keys[key][0]) >= 0:
                    self._client.delete(self._keys[key][0])

    def checkpoint(self) -> Callable[[], None]:
        names = self._client.keys("*")
        expires_s = dict(self._expires_s)
        values = [self._client.dump(name) for name in names]
        ttls_ms = [max(0, self._client.pttl(name)) for name in names]

        def go_back() -> None:
            self._client.flushdb()
            for name, ttl_ms, value in zip(names, ttls_ms, values, strict=True):
                self._client.restore(name, ttl_ms, value)
            self._expires_s = dict(expires_s)

        return go_back

    def reader_view(self) -> dict[int, str | None]:
        """Texts as the chunks spell them; anything that is not whole is told as what it is."""
        names = {name.decode() for name in self._client.keys("*")}
        view = {key: self._text_of(key, names) for key in range(len(self._keys))}
        left = names - {name for keys in self._keys for name in keys[:2]}
        assert not left, f"keys that belong to no document: {left}"
        return view

    def _text_of(self, key: int, names: set[str]) -> str | None:
        """Takes the chunks of the document out of `names`."""
        bookkeeping, _, stem = self._keys[key]
        content_hash: bytes | None = self._client.hget(bookkeeping, "h")
        chunks = sorted(name for name in names if name.startswith(f"{stem}:"))
        names.difference_update(chunks)
        if not chunks and content_hash is None:
            return None
        texts = tuple(self._client.hget(name, "text").decode() for name in chunks)
        if content_hash is None or CHUNKS[content_hash.decode()] != texts:
            return f"torn: {content_hash!r} is stored and the chunks are {texts}"
        return content_hash.decode()

    def _call(self, call: Call) -> Result:
        return Result(self._client.execute_command(*call.command(self._layout)))
