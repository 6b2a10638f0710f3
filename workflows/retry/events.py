"""Trying dead letters of an event topic: the event itself, from the dead letter or from where it was read first."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from daemon.core.change import Change
from daemon.errors import RejectRow
from daemon.index.durability import Durability
from daemon.index.layout import document_id
from daemon.patience import Patience
from daemon.projection.projector import SourceRow
from daemon.settings import Config
from daemon.source.kafka.dead_letter_reader import parse, read_records
from daemon.source.record import Record
from workflows.event_projection import EventProjection
from workflows.retry.common import refused, superseded
from workflows.retry.contract import Attempt, Letter, Tried, TryOutcome

_CLOCKS_APART_S = 60.0
_GONE = RejectRow(
    "the event is not in its topic any more (retention, or the topic was made anew), and its bytes were not kept "
    "(keep_bytes_in_dead_letters); publish it again, or drop the dead letter",
    "record_gone",
)


class Events:
    """Args:
    projection: into one index version.
    refusals: by document id, filled while events are projected.
    """

    def __init__(
        self,
        config: Config,
        patience: Patience,
        projection: EventProjection,
        refusals: Mapping[str, RejectRow],
    ) -> None:
        self._config = config
        self._patience = patience
        self._projection = projection
        self._refusals = refusals

    async def try_all(self, attempts: Sequence[Attempt]) -> list[Tried]:
        """The results in the order of the attempts."""
        over = await superseded(self._patience, self._projection.writer, attempts)
        tried: dict[str, Tried] = {}
        due: list[Attempt] = []
        for attempt in attempts:
            name = attempt.letter.name
            if name in over:
                tried[name] = Tried(attempt.letter, TryOutcome.SUPERSEDED)
            elif attempt.look:
                tried[name] = Tried(attempt.letter, TryOutcome.WAITING)
            else:
                due.append(attempt)
        if due:
            tried |= {one.letter.name: one for one in await self._project(due)}
        return [tried[attempt.letter.name] for attempt in attempts]

    async def _project(self, due: Sequence[Attempt]) -> list[Tried]:
        tried: list[Tried] = []
        rows: list[SourceRow] = []
        written: list[tuple[Attempt, str]] = []
        for attempt, record in zip(due, await self._records(due), strict=True):
            found = self._decoded(attempt, record)
            if isinstance(found, Tried):
                tried.append(found)
            else:
                assert found.version is not None
                name = document_id(found.key)
                rows.append((name, found.version, found.row))
                written.append((attempt, name))
        durability = await Durability.begin(self._projection.client, self._config.redis)
        await self._projection.lane.project(rows)
        await durability.reached()
        for attempt, name in written:
            error = self._refusals.get(name)
            tried.append(refused(attempt, error) if error else Tried(attempt.letter, TryOutcome.APPLIED))
        return tried

    def _decoded(self, attempt: Attempt, record: Record | None) -> Change | Tried:
        """The event, or why there is none."""
        letter = attempt.letter
        if record is None or is_another(letter, record):
            return refused(attempt, _GONE, TryOutcome.GONE)
        marker_ttl_s = self._config.redis.delete_marker_ttl_s
        if time.time() - record.appended_at_s > marker_ttl_s / 2:
            error = RejectRow(
                "the event is older than half of redis.delete_marker_ttl_s: a later delete may be forgotten by now; "
                "publish it again, or drop the dead letter",
                "too_old",
            )
            return refused(attempt, error, TryOutcome.TOO_OLD)
        try:
            return self._projection.decoder.decode(record)
        except RejectRow as error:
            return refused(attempt, error)

    async def _records(self, due: Sequence[Attempt]) -> list[Record | None]:
        """From the dead letter where it kept the bytes, else from the event's own topic."""
        kafka = self._config.kafka
        found: list[Record | None] = [None] * len(due)
        if self._projection.pipeline.keep_bytes_in_dead_letters:
            dead = await asyncio.to_thread(read_records, kafka, [attempt.letter.place for attempt in due])
            found = [_kept(attempt.letter, one) for attempt, one in zip(due, dead, strict=True)]
        missing = [
            (number, place)
            for number, attempt in enumerate(due)
            if found[number] is None and (place := attempt.letter.record) is not None
        ]
        again = await asyncio.to_thread(read_records, kafka, [place for _, place in missing])
        for (number, _), record in zip(missing, again, strict=True):
            found[number] = record
        return found


def _kept(letter: Letter, dead: Record | None) -> Record | None:
    """The event as the dead letter kept it; None where it holds no bytes."""
    if dead is None or dead.value is None or letter.record is None:
        return None
    place = letter.record
    at_s = parse(dead).committed_at_s
    return replace(
        dead,
        topic=place.topic,
        partition=place.partition,
        offset=place.offset,
        headers=(),
        appended_at_s=at_s,
    )


def is_another(letter: Letter, record: Record) -> bool:
    """Whether the record at that place is not the refused one: its topic was made anew since."""
    newer = record.appended_at_s > letter.at_s + _CLOCKS_APART_S
    return newer or (
        letter.document != "" and (record.key or b"").decode("utf-8", "replace") != letter.document
    )
