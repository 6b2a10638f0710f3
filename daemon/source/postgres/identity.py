"""Whether the source is still the database that the log was read from.

A new system identifier, another database of the same server, or another timeline in the same era may have lost
history: what was read of it must then not win over what is true now. Only a newer era does that, and only a person can
say that it is one.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson

from daemon.errors import ConfigError, StopPipeline, StopProcess
from daemon.index.connection import Client, translated
from daemon.index.layout import pipeline_key, source_key
from daemon.settings import PostgresSource
from daemon.source.postgres.reader import PostgresReader

Mark = Callable[[str], Awaitable[None]]
"""Notes, beside the data, why a reconcile is due."""

Identity = dict[str, Any]
"""system, timeline, database and era, as they are kept in Redis; an older build kept no database."""


@dataclass(frozen=True, slots=True)
class IdentityWatch:
    """Watches the identity of one source, kept in Redis beside the data."""

    client: Client
    reader: PostgresReader
    source: PostgresSource

    async def check(self, mark: Mark) -> None:
        """Compare with what was seen last; where an era began since, mark that first, and then note the identity.

        In this order an era that is noted as seen is surely marked, whatever fails in between.

        Raises:
            StopProcess: history may be lost, and the era is still the old one.
            FailureClass: the source or Redis failed.
        """
        now = await _identity(self.reader, self.source)
        stored = await _stored(self.client, self.source)
        before = now if stored is None else {**now, **stored}
        moved = _is_another(before, now)
        if now["era"] < before["era"] or (moved and now["era"] == before["era"]):
            raise StopProcess(
                f"source {self.source.name!r} is now {_text(now)}; its log was read from {_text(before)}. Changes "
                f"that were read may not exist there. Set the source's `era` to {before['era'] + 1} in daemon.toml, "
                "run `livevec connector apply`, start the daemon again and run `livevec verify --repair`"
            )
        if now["era"] > before["era"]:
            await mark("era_began")
        if stored != now:
            with translated():
                await cast(Any, self.client).set(source_key(self.source.name, "identity"), orjson.dumps(now))


async def check_same_source(client: Client, reader: PostgresReader, source: PostgresSource) -> None:
    """Compare with what the daemons noted beside the data; where none has, there is nothing to compare.

    Raises:
        ConfigError: it is another database, whose rows would replace those that the index mirrors.
        FailureClass: the source or Redis failed.
    """
    stored = await _stored(client, source)
    if stored is None:
        return
    now = await _identity(reader, source)
    before = {**now, **stored}
    if _is_another(before, now) and now["era"] <= before["era"]:
        raise ConfigError(
            f"source {source.name!r} leads to {_text(now)}; its index was written from {_text(before)}, and would be "
            "emptied by what another database does not have; correct the source's dsn, or raise its `era` where "
            "history was lost"
        )


async def check_partitions(client: Client, pipeline: str, topic: str, partitions: int) -> None:
    """Make sure that an event topic still has the partitions that it had: offsets order the events of one id only
    while all of them are in one partition.

    Raises:
        StopPipeline: it has others now.
    """
    key = pipeline_key(pipeline, "partitions")
    with translated():
        await cast(Any, client).set(key, partitions, nx=True)
        before = int(await cast(Any, client).get(key))
    if partitions not in (0, before):
        raise StopPipeline(
            f"topic {topic} has {partitions} partitions, it had {before}: events of one id are in two of them now, and "
            f"which is newer is not known. Write all events into a new topic, and give it a new pipeline"
        )


async def _identity(reader: PostgresReader, source: PostgresSource) -> Identity:
    identity = await reader.identity()
    return {
        "system": str(identity.system_identifier),
        "timeline": identity.timeline,
        "database": identity.database_oid,
        "era": source.era,
    }


async def _stored(client: Client, source: PostgresSource) -> Identity | None:
    with translated():
        stored = await cast(Any, client).get(source_key(source.name, "identity"))
    return cast(Identity, orjson.loads(stored)) if stored else None


def _is_another(before: Identity, now: Identity) -> bool:
    return any(before[name] != now[name] for name in ("system", "timeline", "database"))


def _text(identity: Identity) -> str:
    return ", ".join(f"{name} {value}" for name, value in identity.items())
