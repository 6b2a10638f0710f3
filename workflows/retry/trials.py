"""Trying dead letters in one index version: a table's rows are read again as they are now; an event is found again.

What was refused is not looked at where the source can be asked. An event is taken from the dead letter, which may have
kept its bytes, or from where it was read first.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from daemon.core.version import LogVersion, SnapshotVersion, Version, decode, replaces
from daemon.errors import RejectRow
from daemon.index.layout import document_id, document_key
from daemon.projection.build import Assembly, EventProjection, Projection
from daemon.projection.projector import SourceRow
from daemon.source.envelope import row_key
from daemon.source.kafka.dead_letter_reader import parse, read_records
from daemon.source.record import Record
from daemon.verify.sides import Key
from workflows.resources import Resources
from workflows.retry.contract import Attempt, Complaint, Letter, Tried, TryOutcome

_CLOCKS_APART_S = 60.0
_GONE = RejectRow(
    "the event is not in its topic any more (retention, or the topic was made anew), and its bytes were not kept "
    "(keep_bytes_in_dead_letters); publish it again, or drop the dead letter",
    "record_gone",
)
_TOO_OLD = RejectRow(
    "the event is older than half of redis.delete_marker_ttl_s: a later delete may be forgotten by now; publish it "
    "again, or drop the dead letter",
    "too_old",
)


class Trials(ABC):
    """Tries dead letters once, and counts as refused what the projector refuses: no new dead letter is written."""

    def __init__(self, resources: Resources, projection: Assembly) -> None:
        self._resources = resources
        self._config = resources.config
        self._assembly = projection
        self._lane = resources.lane(projection)

    async def try_all(self, attempts: Sequence[Attempt]) -> list[Tried]:
        """Return the results in the order of the attempts; what was written is on disk.

        Raises:
            FailureClass: a part failed; they may be tried again.
        """
        superseded = await self._superseded(attempts)
        tried = {name: Tried(letter, TryOutcome.SUPERSEDED) for name, letter in superseded.items()}
        due = [attempt for attempt in attempts if attempt.letter.name not in superseded]
        rows: list[tuple[Attempt, SourceRow]] = []
        for attempt, row in zip(due, await self._rows(due), strict=True):
            if isinstance(row, Tried):
                tried[attempt.letter.name] = row
            else:
                rows.append((attempt, row))
        if rows:
            tried |= await self._projected(rows)
        return [tried[attempt.letter.name] for attempt in attempts]

    @abstractmethod
    async def _rows(self, attempts: Sequence[Attempt]) -> list[SourceRow | Tried]:
        """Return what is to be written for each attempt, or what became of it without."""

    async def _projected(self, rows: Sequence[tuple[Attempt, SourceRow]]) -> dict[str, Tried]:
        await self._resources.patience.call("redis", self._assembly.ensure_index)
        durability = await self._resources.durability(self._assembly)
        with self._resources.refusals() as refusals:
            await self._lane.project([row for _, row in rows])
        await durability.reached()
        return {
            attempt.letter.name: refused(attempt, refusals[identifier])
            if identifier in refusals
            else Tried(attempt.letter, TryOutcome.APPLIED)
            for attempt, (identifier, _, _) in rows
        }

    async def _superseded(self, attempts: Sequence[Attempt]) -> dict[str, Letter]:
        """Return those whose document is stored, or marked as deleted, by something newer; by name."""
        known = [
            (a.letter, version) for a in attempts if a.letter.document and (version := version_of(a.letter))
        ]
        if not known:
            return {}
        stored = await self._resources.patience.call(
            "redis", self._assembly.writer.lookup, [letter.document for letter, _ in known]
        )
        return {
            letter.name: letter
            for (letter, version), before in zip(known, stored, strict=True)
            if before is not None and not replaces(version, before.version)
        }


class RowTrials(Trials):
    """Of a table's dead letters."""

    def __init__(self, resources: Resources, projection: Projection) -> None:
        super().__init__(resources, projection)
        self._projection = projection

    async def _rows(self, attempts: Sequence[Attempt]) -> list[SourceRow | Tried]:
        rows: dict[str, SourceRow | Tried] = {}
        due: list[tuple[Attempt, Key]] = []
        for attempt, key in zip(attempts, await self._keys(attempts), strict=True):
            if isinstance(key, RejectRow):
                rows[attempt.letter.name] = refused(attempt, key, TryOutcome.GONE)
            elif attempt.look and version_of(attempt.letter) is not None:
                rows[attempt.letter.name] = Tried(attempt.letter, TryOutcome.WAITING)
            else:
                due.append((attempt, key))
        reader = self._projection.reader
        keys = [key for _, key in due]
        read = await self._resources.patience.call(reader.part, self._projection.rows.reread_each, keys)
        for (attempt, key), reread in zip(due, read, strict=True):
            if isinstance(reread, RejectRow):
                rows[attempt.letter.name] = refused(attempt, reread)
            elif too_early(attempt, reread[0]):
                rows[attempt.letter.name] = Tried(attempt.letter, TryOutcome.LATER)
            else:
                rows[attempt.letter.name] = (document_id(key), *reread)
        return [rows[attempt.letter.name] for attempt in attempts]

    async def _keys(self, attempts: Sequence[Attempt]) -> list[Key | RejectRow]:
        """Return each primary key; where the record could not be decoded, out of its own key, if that can be."""
        columns, table = self._projection.table.key, self._projection.table.name
        nameless = [a.letter for a in attempts if not a.letter.document]
        places = [letter.place for letter in nameless]
        records = await asyncio.to_thread(read_records, self._config.kafka, places)
        keys: dict[str, Key | RejectRow] = {}
        for letter, record in zip(nameless, records, strict=True):
            try:
                keys[letter.name] = row_key(record.key if record else None, columns, table)
            except RejectRow as error:
                keys[letter.name] = error
        return [self._key(a.letter.document) if a.letter.document else keys[a.letter.name] for a in attempts]

    def _key(self, identifier: str) -> Key | RejectRow:
        table = self._projection.table
        key = document_key(identifier, len(table.key))
        if len(key) == len(table.key):
            return key
        return RejectRow(
            f"this key has {len(key)} columns, that of {table.name} {len(table.key)}", "malformed_key"
        )


class EventTrials(Trials):
    """Of an event topic's dead letters."""

    def __init__(self, resources: Resources, projection: EventProjection) -> None:
        super().__init__(resources, projection)
        self._projection = projection

    async def _rows(self, attempts: Sequence[Attempt]) -> list[SourceRow | Tried]:
        due = [attempt for attempt in attempts if not attempt.look]
        records = dict(zip((a.letter.name for a in due), await self._records(due), strict=True))
        return [
            Tried(a.letter, TryOutcome.WAITING) if a.look else self._decoded(a, records[a.letter.name])
            for a in attempts
        ]

    def _decoded(self, attempt: Attempt, record: Record | None) -> SourceRow | Tried:
        if record is None or is_another(attempt.letter, record):
            return refused(attempt, _GONE, TryOutcome.GONE)
        if time.time() - record.appended_at_s > self._config.redis.delete_marker_ttl_s / 2:
            return refused(attempt, _TOO_OLD, TryOutcome.TOO_OLD)
        try:
            change = self._projection.decoder.decode(record)
        except RejectRow as error:
            return refused(attempt, error)
        assert change.version is not None, "an event's place is its version"
        return document_id(change.key), change.version, change.row

    async def _records(self, attempts: Sequence[Attempt]) -> list[Record | None]:
        """Read each event from its dead letter where that kept the bytes, else from the event's own topic."""
        kafka = self._config.kafka
        records: list[Record | None] = [None] * len(attempts)
        if self._projection.pipeline.keep_bytes_in_dead_letters:
            dead = await asyncio.to_thread(read_records, kafka, [a.letter.place for a in attempts])
            records = [_kept(a.letter, record) for a, record in zip(attempts, dead, strict=True)]
        missing = [
            (number, place)
            for number, attempt in enumerate(attempts)
            if records[number] is None and (place := attempt.letter.record) is not None
        ]
        originals = await asyncio.to_thread(read_records, kafka, [place for _, place in missing])
        for (number, _), record in zip(missing, originals, strict=True):
            records[number] = record
        return records


def refused(attempt: Attempt, error: RejectRow, outcome: TryOutcome = TryOutcome.REFUSED) -> Tried:
    """Return the result of an attempt that ended so; a look is none."""
    if attempt.look:
        return Tried(attempt.letter, TryOutcome.WAITING)
    return Tried(attempt.letter, outcome, Complaint.of(error.reason, str(error)))


def version_of(letter: Letter) -> Version | None:
    """Return the version of the refused change; None where the letter does not tell it."""
    try:
        return decode(letter.version)
    except ValueError:
        return None


def too_early(attempt: Attempt, snapshot: SnapshotVersion) -> bool:
    """Return whether the row that was read is not yet the refused one: a commit is in the log before it is visible."""
    version = version_of(attempt.letter)
    return isinstance(version, LogVersion) and version.era == snapshot.era and not snapshot.sees(version.xid)


def is_another(letter: Letter, record: Record) -> bool:
    """Return whether the record at that place is not the refused one: its topic was made anew since."""
    newer = record.appended_at_s > letter.at_s + _CLOCKS_APART_S
    return newer or (
        letter.document != "" and (record.key or b"").decode("utf-8", "replace") != letter.document
    )


def _kept(letter: Letter, dead: Record | None) -> Record | None:
    """Return the event as the dead letter kept it; None where it holds no bytes."""
    if dead is None or dead.value is None or letter.record is None:
        return None
    place = letter.record
    return replace(
        dead,
        topic=place.topic,
        partition=place.partition,
        offset=place.offset,
        headers=(),
        appended_at_s=parse(dead).committed_at_s,
    )
