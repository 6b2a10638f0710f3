"""Whether the table to compare with is the one that the index mirrors: a repair from another would empty it."""

from typing import Any, cast

import orjson

from daemon.errors import ConfigError
from daemon.index.connection import Client, translated
from daemon.index.layout import identity_key
from daemon.settings import PostgresSource
from daemon.source.postgres.reader import PostgresReader


async def check_same_source(client: Client, reader: PostgresReader, source: PostgresSource) -> None:
    """Compare with what the daemons noted beside the data; where none has, there is nothing to compare.

    Raises:
        ConfigError: it is another database.
        FailureClass: the source or Redis failed.
    """
    found = await reader.identity()
    with translated():
        stored = await cast(Any, client).get(identity_key(source.name))
    if stored is None:
        return
    before: dict[str, Any] = orjson.loads(stored)
    moved = before["system"] != str(found.system_identifier) or before["timeline"] != found.timeline
    if moved and source.era <= before["era"]:
        raise ConfigError(
            f"source {source.name!r} leads to system {found.system_identifier}, timeline {found.timeline}; its index "
            f"was written from system {before['system']}, timeline {before['timeline']}, and would be emptied by what "
            "another database does not have; correct the source's dsn, or raise its `era` where history was lost"
        )
