"""Trying dead letters of a table: its rows are read again, as they are now; what was refused is not looked at."""

import asyncio
from collections.abc import Mapping, Sequence

from daemon.core.change import Row
from daemon.core.version import LogVersion, SnapshotVersion
from daemon.errors import FailureClass, RejectRow
from daemon.index.durability import Durability
from daemon.index.layout import document_id, document_key
from daemon.projection.build import Projection
from daemon.settings import Config
from daemon.source.envelope import row_key
from daemon.source.kafka.dead_letter_reader import read_records
from daemon.source.postgres.failures import refusal_of_read
from workflows.retry.common import refused, superseded, version_of
from workflows.retry.contract import Attempt, Tried, TryOutcome

Key = tuple[str, ...]


class Rows:
    """Args:
    projection: into one index version.
    refusals: by document id, filled while rows are projected.
    """

    def __init__(self, config: Config, projection: Projection, refusals: Mapping[str, RejectRow]) -> None:
        self._config = config
        self._projection = projection
        self._refusals = refusals

    async def try_all(self, attempts: Sequence[Attempt]) -> list[Tried]:
        """The results in the order of the attempts."""
        projection = self._projection
        keys = await self._keys(attempts)
        over = await superseded(projection.patience, projection.writer, attempts)
        tried: dict[str, Tried] = {}
        due: list[tuple[Attempt, Key]] = []
        for attempt, key in zip(attempts, keys, strict=True):
            name = attempt.letter.name
            if name in over:
                tried[name] = Tried(attempt.letter, TryOutcome.SUPERSEDED)
            elif isinstance(key, RejectRow):
                tried[name] = refused(attempt, key, TryOutcome.GONE)
            elif attempt.look and version_of(attempt.letter) is not None:
                tried[name] = Tried(attempt.letter, TryOutcome.WAITING)
            else:
                due.append((attempt, key))
        if due:
            tried |= {one.letter.name: one for one in await self._project(due)}
        return [tried[attempt.letter.name] for attempt in attempts]

    async def _project(self, due: Sequence[tuple[Attempt, Key]]) -> list[Tried]:
        projection = self._projection
        durability = await Durability.begin(projection.client, self._config.redis)
        found = await self._reread([key for _, key in due])
        tried, read = [], []
        for (attempt, key), one in zip(due, found, strict=True):
            if isinstance(one, RejectRow):
                tried.append(refused(attempt, one))
                continue
            snapshot, row = one
            if too_early(attempt, snapshot):
                tried.append(Tried(attempt.letter, TryOutcome.LATER))
            else:
                read.append((attempt, document_id(key), snapshot, row))
        await projection.lane.project([(name, snapshot, row) for _, name, snapshot, row in read])
        await durability.reached()
        for attempt, name, _, _ in read:
            error = self._refusals.get(name)
            tried.append(refused(attempt, error) if error else Tried(attempt.letter, TryOutcome.APPLIED))
        return tried

    async def _reread(self, keys: Sequence[Key]) -> list[tuple[SnapshotVersion, Row | None] | RejectRow]:
        """The rows; one that cannot be read does not hold up its neighbours."""
        projection = self._projection
        try:
            return [*await projection.patience.call("source", lambda: projection.rows.reread(keys))]
        except (FailureClass, ValueError, ArithmeticError, LookupError) as error:
            refusal = refusal_of_read(error)
            if refusal is None:
                raise
            if len(keys) == 1:
                return [refusal]
        half = len(keys) // 2
        return [*await self._reread(keys[:half]), *await self._reread(keys[half:])]

    async def _keys(self, attempts: Sequence[Attempt]) -> list[Key | RejectRow]:
        """The primary key of each; where the record could not be decoded, out of its own key, if that can be."""
        columns, table = self._projection.table.key, self._projection.table.name
        nameless = [a.letter for a in attempts if not a.letter.document]
        dead = await asyncio.to_thread(
            read_records, self._config.kafka, [letter.place for letter in nameless]
        )
        found: dict[str, Key | RejectRow] = {}
        for letter, record in zip(nameless, dead, strict=True):
            try:
                found[letter.name] = row_key(record.key if record else None, columns, table)
            except RejectRow as error:
                found[letter.name] = error
        return [self._key(a.letter.document) if a.letter.document else found[a.letter.name] for a in attempts]

    def _key(self, identifier: str) -> Key | RejectRow:
        table = self._projection.table
        key = document_key(identifier, len(table.key))
        if len(key) == len(table.key):
            return key
        return RejectRow(
            f"this key has {len(key)} columns, that of {table.name} {len(table.key)}", "malformed_key"
        )


def too_early(attempt: Attempt, snapshot: SnapshotVersion) -> bool:
    """A commit is in the log before it is visible: the row that was refused is not the one that was read."""
    version = version_of(attempt.letter)
    return isinstance(version, LogVersion) and version.era == snapshot.era and not snapshot.sees(version.xid)
