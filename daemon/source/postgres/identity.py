"""Whether the source is still the database that the log was read from.

A new system identifier, or another timeline in the same era, may have lost history: what was read of it must then
not win over what is true now. Only a newer era does that, and only a person can say that it is one.
"""

from typing import Any, cast

import orjson

from daemon.errors import StopPipeline, StopProcess
from daemon.index.connection import Client, translated
from daemon.index.layout import identity_key, partitions_key
from daemon.settings import PostgresSource
from daemon.source.postgres.reader import PostgresReader


class IdentityWatch:
    """Watches the identity of one source, kept in Redis beside the data."""

    def __init__(self, client: Client, reader: PostgresReader, source: PostgresSource) -> None:
        self._client = client
        self._reader = reader
        self._source = source
        self._key = identity_key(source.name)

    async def check(self) -> bool:
        """Compare with what was seen last; answers whether an era began since, which calls for a repair.

        Raises:
            StopProcess: history may be lost, and the era is still the old one.
            FailureClass: the source or Redis failed.
        """
        found = await self._reader.identity()
        now: dict[str, Any] = {
            "system": str(found.system_identifier),
            "timeline": found.timeline,
            "era": self._source.era,
        }
        with translated():
            stored = await cast(Any, self._client).get(self._key)
        before: dict[str, Any] = orjson.loads(stored) if stored else now
        moved = before["system"] != now["system"] or before["timeline"] != now["timeline"]
        if self._source.era < before["era"] or (moved and self._source.era == before["era"]):
            was = f"system {before['system']}, timeline {before['timeline']}, era {before['era']}"
            raise StopProcess(
                f"source {self._source.name!r} is now system {now['system']}, timeline {now['timeline']}, era "
                f"{now['era']}; its log was read from {was}. Changes that were read may not exist there. Set the "
                f"source's `era` to {before['era'] + 1} in daemon.toml, run `livevec connector apply`, start the "
                "daemon again and run `livevec verify --repair`"
            )
        if stored is None or before != now:
            with translated():
                await cast(Any, self._client).set(self._key, orjson.dumps(now))
        return bool(now["era"] > before["era"])


async def check_partitions(client: Client, pipeline: str, topic: str, partitions: int) -> None:
    """Make sure that an event topic still has the partitions that it had: offsets order the events of one id only
    while all of them are in one partition.

    Raises:
        StopPipeline: it has others now.
    """
    key = partitions_key(pipeline)
    with translated():
        await cast(Any, client).set(key, partitions, nx=True)
        before = int(await cast(Any, client).get(key))
    if partitions not in (0, before):
        raise StopPipeline(
            f"topic {topic} has {partitions} partitions, it had {before}: events of one id are in two of them now, and "
            f"which is newer is not known. Write all events into a new topic, and give it a new pipeline"
        )
