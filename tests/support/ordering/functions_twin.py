"""What functions.lua does to a key space, under `daemon.core.version`."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from redis.exceptions import ResponseError

from daemon.core.version import Version, decode, replaces, sweeps
from daemon.index.writer import Result

Hash = dict[bytes, bytes]


class Keyspace:
    """The keys of a Redis: text (bytes), hashes and sets, some of which expire.

    Args:
        now_s: the clock by which they expire.
    """

    def __init__(self, now_s: Callable[[], float] = lambda: 0.0) -> None:
        self._now_s = now_s
        self.values: dict[str, Any] = {}
        self.expires_at_s: dict[str, float] = {}

    def find(self, key: str, kind: type) -> Any:
        """The value, None where there is none.

        Raises:
            ResponseError: it is of another kind.
        """
        if key in self.expires_at_s and self.expires_at_s[key] <= self._now_s():
            self.remove(key)
        value = self.values.get(key)
        if value is not None and not isinstance(value, kind):
            raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def hash(self, key: str) -> Hash:
        """The hash to read; not for writing, where there may be none."""
        found: Hash | None = self.find(key, dict)
        return {} if found is None else found

    def hash_set(self, key: str, fields: Hash) -> int:
        hash: Hash = self.find(key, dict)
        if hash is None:
            hash = self.values[key] = {}
        added = len(fields.keys() - hash.keys())
        hash.update(fields)
        return added

    def hash_delete(self, key: str, names: Sequence[bytes]) -> int:
        hash = self.hash(key)
        removed = sum(hash.pop(name, None) is not None for name in names)
        if not hash:
            self.remove(key)
        return removed

    def set(self, key: str, value: Any) -> None:
        """Put a value in place of what is there; it does not expire."""
        self.values[key] = value
        self.expires_at_s.pop(key, None)

    def expire_in(self, key: str, seconds: float) -> None:
        if key in self.values:
            self.expires_at_s[key] = self._now_s() + seconds

    def persist(self, key: str) -> None:
        self.expires_at_s.pop(key, None)

    def ttl_s(self, key: str) -> float | None:
        at_s = self.expires_at_s.get(key)
        return None if at_s is None else at_s - self._now_s()

    def remove(self, key: str) -> bool:
        self.expires_at_s.pop(key, None)
        return self.values.pop(key, None) is not None

    def there(self, key: str) -> bool:
        return self.find(key, object) is not None

    def names(self) -> list[str]:
        """All keys, in a fixed order."""
        return [key for key in sorted(self.values) if self.there(key)]

    def matching(self, names: Iterable[str], pattern: str) -> list[str]:
        """Those that match a glob."""
        matches = _matcher(pattern)
        return [name for name in names if matches(name)]

    def checkpoint(self) -> Callable[[], None]:
        """Keeps the state; calling what it returns goes back to it."""

        def copied(values: dict[str, Any]) -> dict[str, Any]:
            return {
                key: value.copy() if isinstance(value, (dict, set)) else value
                for key, value in values.items()
            }

        values, expires_at_s = copied(self.values), dict(self.expires_at_s)

        def go_back() -> None:
            self.values, self.expires_at_s = copied(values), dict(expires_at_s)

        return go_back

    def clear(self) -> None:
        self.values.clear()
        self.expires_at_s.clear()


@lru_cache(maxsize=256)
def _matcher(pattern: str) -> Callable[[str], Any]:
    """Of a Redis glob, in which a backslash takes the meaning from what follows."""
    parts = re.findall(r"\\.|\[[^]]*\]|.", pattern, re.DOTALL)
    text = "".join(
        re.escape(part[1:])
        if part.startswith("\\")
        else fnmatch.translate(part)[4:-3]
        if part in ("*", "?") or part.startswith("[")
        else re.escape(part)
        for part in parts
    )
    return re.compile(text, re.DOTALL).fullmatch


class FunctionsTwin:
    """The functions over a key space.

    Args:
        run_id: of the server.
    """

    def __init__(self, keyspace: Keyspace, run_id: Callable[[], str] = lambda: "") -> None:
        self._keyspace = keyspace
        self._run_id = run_id
        self._functions: dict[str, Callable[[Sequence[str], Sequence[bytes]], Any]] = {
            "livevec_put": self._put,
            "livevec_touch": self._touch,
            "livevec_delete": self._delete,
            "livevec_raise_floor": self._raise_floor,
            "livevec_sweep": self._sweep,
            "livevec_vectors": self._vectors,
            "livevec_advance": self._advance,
            "livevec_clear_marks": self._clear_marks,
        }

    def call(self, name: str, keys: Sequence[str], args: Sequence[bytes]) -> Any:
        """What FCALL answers.

        Raises:
            ResponseError: there is no such function, or what it is given is malformed.
        """
        function = self._functions.get(name)
        if function is None:
            raise ResponseError("Function not found")
        return function(keys, args)

    # ---- documents: keys are bookkeeping, floor and stem

    def _put(self, keys: Sequence[str], args: Sequence[bytes]) -> Result:
        space, (bookkeeping, _, stem) = self._keyspace, keys
        version, content_hash, metadata_hash, chunks_text, fields_text, *rest = args
        chunks, fields = int(chunks_text), int(fields_text)
        if len(rest) != 2 * (chunks + fields):
            raise ResponseError("LIVEVEC livevec_put: the arguments do not add up")
        if not self._beats_all(version, keys):
            return Result.SUPERSEDED
        self._drop_chunks(bookkeeping, stem, 0)
        shared = dict(zip(rest[0 : 2 * fields : 2], rest[1 : 2 * fields : 2], strict=True))
        for number in range(chunks):
            text, embedding = rest[2 * (fields + number) : 2 * (fields + number) + 2]
            chunk = {b"chunk": b"%d" % number, b"text": text, b"embedding": embedding}
            space.set(f"{stem}:{number}", chunk | shared)
        space.set(bookkeeping, {b"v": version, b"h": content_hash, b"m": metadata_hash, b"n": chunks_text})
        return Result.APPLIED

    def _touch(self, keys: Sequence[str], args: Sequence[bytes]) -> Result:
        space, (bookkeeping, _, stem) = self._keyspace, keys
        version, content_hash, metadata_hash, fields_text, *rest = args
        if not self._beats_all(version, keys):
            return Result.SUPERSEDED
        stored = space.hash(bookkeeping)
        if stored.get(b"h") != content_hash:
            return Result.CONFLICT
        chunks = [f"{stem}:{number}" for number in range(int(stored[b"n"]))]
        if not all(map(space.there, chunks)):
            return Result.CONFLICT
        if stored[b"m"] != metadata_hash:
            count = 2 * int(fields_text)
            fields = dict(zip(rest[0:count:2], rest[1:count:2], strict=True))
            for chunk in chunks:
                space.hash_set(chunk, fields)
                space.hash_delete(chunk, rest[count:])
        space.hash_set(bookkeeping, {b"v": version, b"m": metadata_hash})
        return Result.APPLIED

    def _delete(self, keys: Sequence[str], args: Sequence[bytes]) -> Result:
        space, (bookkeeping, _, stem), (version, ttl_ms) = self._keyspace, keys, args
        if not self._beats_all(version, keys):
            return Result.SUPERSEDED
        there = b"h" in space.hash(bookkeeping)
        self._drop_chunks(bookkeeping, stem, 0)
        space.set(bookkeeping, {b"v": version, b"x": b"1"})
        space.expire_in(bookkeeping, int(ttl_ms) / 1000)
        return Result.APPLIED if there else Result.ABSENT

    def _sweep(self, keys: Sequence[str], args: Sequence[bytes]) -> Result:
        space, (bookkeeping, _, stem) = self._keyspace, keys
        version, stored = _version(args[0]), space.hash(bookkeeping).get(b"v")
        if stored is None:
            return Result.ABSENT
        if not sweeps(version, _version(stored)):
            return Result.SUPERSEDED
        self._drop_chunks(bookkeeping, stem, 0)
        space.remove(bookkeeping)
        return Result.APPLIED

    def _vectors(self, keys: Sequence[str], args: Sequence[bytes]) -> list[bytes]:
        stored = self._keyspace.hash(keys[0])
        if stored.get(b"h") != args[0]:
            return []
        chunks = [self._keyspace.hash(f"{keys[2]}:{number}") for number in range(int(stored[b"n"]))]
        vectors = [chunk[b"embedding"] for chunk in chunks if b"embedding" in chunk]
        return vectors if len(vectors) == len(chunks) else []

    # ---- others

    def _raise_floor(self, keys: Sequence[str], args: Sequence[bytes]) -> Result:
        version, floor = _version(args[0]), self._keyspace.find(keys[0], bytes)
        if floor is not None and not replaces(version, _version(floor)):
            return Result.SUPERSEDED
        self._keyspace.set(keys[0], args[0])
        return Result.APPLIED

    def _advance(self, keys: Sequence[str], args: Sequence[bytes]) -> Result | list[bytes]:
        stored = self._keyspace.hash(keys[0])
        moves = [tuple(args[at : at + 3]) for at in range(0, len(args), 3)]
        now = {b"@server": self._run_id().encode()}
        now = {field: now.get(field, stored.get(field, b"")) for field, _, _ in moves}
        differing = [(field, now[field]) for field, expected, _ in moves if now[field] != expected]
        if differing:
            return [part for pair in differing for part in pair]
        moved = {field: value for field, _, value in moves if field != b"@server"}
        if moved:
            self._keyspace.hash_set(keys[0], moved)
        return Result.APPLIED

    def _clear_marks(self, keys: Sequence[str], args: Sequence[bytes]) -> int:
        marks = self._keyspace.hash(keys[0])
        same = [name for name, since in zip(args[::2], args[1::2], strict=True) if marks.get(name) == since]
        return self._keyspace.hash_delete(keys[0], same)

    # ---- parts

    def _beats_all(self, text: bytes, keys: Sequence[str]) -> bool:
        version = _version(text)
        stored = self._keyspace.hash(keys[0]).get(b"v")
        if stored is not None and not replaces(version, _version(stored)):
            return False
        floor: bytes | None = self._keyspace.find(keys[1], bytes)
        return floor is None or replaces(version, _version(floor))

    def _drop_chunks(self, bookkeeping: str, stem: str, first: int) -> None:
        for number in range(first, int(self._keyspace.hash(bookkeeping).get(b"n", b"0"))):
            self._keyspace.remove(f"{stem}:{number}")


@lru_cache(maxsize=4096)
def _version(text: bytes) -> Version:
    try:
        return decode(text.decode())
    except ValueError:
        raise ResponseError(f"LIVEVEC malformed version: {text[:100]!r}") from None
