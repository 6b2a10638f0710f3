"""Notices changes of a table that never reach the log: a rewrite, a partition detached, a table made anew.

What a table was is kept in Redis beside the data, so that a change made while no daemon ran is seen too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from daemon.errors import StopPipeline
from daemon.index.connection import Client, translated
from daemon.index.layout import pipeline_key
from daemon.source.postgres.identity import Mark
from daemon.source.postgres.reader import PostgresReader
from daemon.source.postgres.schema import TableSchema


@dataclass(frozen=True, slots=True)
class TableWatch:
    """Watches one table for one pipeline.

    Attributes:
        table: as the pipeline was built for.
        columns: those that the pipeline needs.
    """

    client: Client
    reader: PostgresReader
    pipeline: str
    table: TableSchema
    columns: Sequence[str]

    async def check(self, mark: Mark) -> None:
        """Compare the table with the last look: mark each difference first, then note what the table is now.

        In this order a fact that is noted as seen is surely marked, whatever fails in between.

        Raises:
            StopPipeline: the key, or a column that the pipeline needs, is not what the pipeline was built for.
            FailureClass: the source or Redis failed.
        """
        table = await self.reader.schema(self.table.name)
        self._check_columns(table)
        facts = orjson.dumps(
            {
                "table_made_anew": table.oid,
                "table_rewritten": table.filenode,
                "partitions_changed": table.partitions,
                "publication_changed": table.publication,
            }
        )
        with translated():
            stored = await cast(Any, self.client).get(pipeline_key(self.pipeline, "table"))
        # Both from JSON: a tuple is not equal to the list that it became.
        now, before = orjson.loads(facts), orjson.loads(stored or facts)
        for name, value in now.items():
            if before.get(name) != value:
                await mark(name)
        if stored is None or before != now:
            with translated():
                await cast(Any, self.client).set(pipeline_key(self.pipeline, "table"), facts)

    def _check_columns(self, table: TableSchema) -> None:
        if table.key != self.table.key:
            raise StopPipeline(
                f"the primary key of {table.name} is now ({', '.join(table.key)}), it was "
                f"({', '.join(self.table.key)}); the index holds the old ids: give the pipeline a new name"
            )
        for name in self.columns:
            before, now = self.table.column(name), table.column(name)
            if now.type_oid != before.type_oid:
                raise StopPipeline(
                    f"column {name!r} of {table.name} is now {now.type_name}, it was {before.type_name}; start the "
                    "daemon again, then run `livevec verify --repair`"
                )
