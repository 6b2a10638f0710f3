"""Columns that a connector leaves out because a value in them could stop it."""

from collections.abc import Sequence

from connectors import slot
from daemon.settings import Pipeline, PostgresSource
from daemon.source.postgres.catalog import key_columns, needed_columns, read_table


def exclusions(source: PostgresSource, pipelines: Sequence[Pipeline]) -> tuple[str, ...]:
    """Columns as `schema.table.column` that no pipeline needs and Debezium may choke on, see `column_types`.

    A table with a pgvector column is the usual case: an update of another column would make the task fail.

    Raises:
        ConnectorError: PostgreSQL cannot be reached.
    """
    needed: dict[str, set[str]] = {}
    for pipeline in pipelines:
        if pipeline.source == source.name:
            needed.setdefault(pipeline.table, set()).update(needed_columns(pipeline))
    found: list[str] = []
    with slot.connected(source) as connection:
        for name, columns in sorted(needed.items()):
            table = read_table(connection, name)
            if table is not None:
                kept = columns.union(key_columns(connection, table))
                found += [f"{name}.{c.name}" for c in table.columns if not c.steady and c.name not in kept]
    return tuple(found)
