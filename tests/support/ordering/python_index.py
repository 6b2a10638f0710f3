"""An index in a dictionary, under `daemon.core.version`."""

from collections.abc import Callable
from dataclasses import dataclass

from daemon.core.version import Version, replaces, sweeps
from daemon.index.writer import Result
from tests.support.ordering.index import Stored
from tests.support.ordering.postgres import KEYS

_KEYS_PER_BUCKET = 2


@dataclass(frozen=True)
class _Row:
    version: Version
    text: str | None
    expires_s: int | None = None


class PythonIndex:
    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}
        self._floors: dict[int, Version] = {}

    def put(self, key: int, version: Version, text: str) -> Result:
        if not self._beats_all(key, version):
            return Result.SUPERSEDED
        self._rows[key] = _Row(version, text)
        return Result.APPLIED

    def touch(self, key: int, version: Version, planned_text: str) -> Result:
        if not self._beats_all(key, version):
            return Result.SUPERSEDED
        row = self._rows.get(key)
        if row is None or row.text != planned_text:
            return Result.CONFLICT
        self._rows[key] = _Row(version, planned_text)
        return Result.APPLIED

    def delete(self, key: int, version: Version, expires_s: int) -> Result:
        if not self._beats_all(key, version):
            return Result.SUPERSEDED
        row = self._rows.get(key)
        self._rows[key] = _Row(version, None, expires_s)
        return Result.ABSENT if row is None or row.text is None else Result.APPLIED

    def raise_floor(self, key: int, version: Version) -> None:
        bucket = key // _KEYS_PER_BUCKET
        if replaces(version, self._floors.get(bucket)):
            self._floors[bucket] = version

    def sweep(self, key: int, version: Version) -> None:
        row = self._rows.get(key)
        if row is not None and sweeps(version, row.version):
            del self._rows[key]

    def stored(self, key: int) -> Stored | None:
        row = self._rows.get(key)
        return None if row is None else Stored(row.text)

    def expire(self, now_s: int) -> None:
        for key, row in list(self._rows.items()):
            if row.expires_s is not None and row.expires_s <= now_s:
                del self._rows[key]

    def checkpoint(self) -> Callable[[], None]:
        rows, floors = dict(self._rows), dict(self._floors)

        def go_back() -> None:
            self._rows, self._floors = dict(rows), dict(floors)

        return go_back

    def reader_view(self) -> dict[int, str | None]:
        return {key: (row.text if (row := self._rows.get(key)) else None) for key in range(KEYS)}

    def _beats_all(self, key: int, version: Version) -> bool:
        row = self._rows.get(key)
        stored = None if row is None else row.version
        return replaces(version, stored) and replaces(version, self._floors.get(key // _KEYS_PER_BUCKET))
