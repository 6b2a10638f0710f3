"""What a publication says of one table."""

from collections.abc import Iterator, Sequence

from psycopg import sql

from connectors.rules import Finding, failed, passed
from daemon.settings import PostgresSource
from daemon.source.postgres.catalog import Connection, Table


def check_publication(
    connection: Connection, source: PostgresSource, table: Table, needed: Sequence[str]
) -> Iterator[Finding]:
    publication = sql.Identifier(source.publication_name).as_string(connection)
    row = connection.execute(
        "SELECT t.attnames::text[], t.rowfilter FROM pg_publication_tables t WHERE t.pubname = %s"
        " AND format('%%I.%%I', t.schemaname, t.tablename) = %s",
        [source.publication_name, table.quoted],
    ).fetchone()
    if row is None:
        yield _not_published(connection, publication, source, table)
        return
    attributes, row_filter = set(row[0] or ()), row[1]
    again = f"ALTER PUBLICATION {publication} DROP TABLE {table.quoted}, then ADD TABLE {table.quoted}"
    yield passed("publication_table", f"the publication carries {table.name}")
    if row_filter is not None:
        yield failed(
            "publication_filter", f"the publication filters the rows of {table.name}: {row_filter}", again
        )
    missing = [name for name in needed if table.column(name) and name not in attributes]
    generated = [column for column in table.columns if column.generated and column.name in missing]
    if generated:
        yield failed(
            "publication_columns",
            f"{table.name}: generated columns are not published: {', '.join(c.name for c in generated)}",
            f"PostgreSQL 18: ALTER PUBLICATION {publication} SET (publish_generated_columns = stored), which "
            "carries STORED columns; else use the columns it is made from",
        )
    elif missing:
        yield failed(
            "publication_columns", f"the publication leaves out columns of {table.name}: {missing}", again
        )
    hidden = [column.name for column in table.columns if column.name not in attributes]
    domains = [column.name for column in table.columns if column.domain and column.enum]
    if hidden and domains:
        # Seen with Debezium 3.7: such a row makes it read the table's columns anew, with those that are not
        # published, and the values that follow land in the wrong columns.
        yield failed(
            "publication_columns",
            f"{table.name} has columns that are not published ({', '.join(hidden)}) beside a domain over an "
            f"enum ({', '.join(domains)}): Debezium would put values into wrong columns",
            f"publish all columns, or ALTER TABLE {table.quoted} ALTER COLUMN ... TYPE the enum itself",
        )


def _not_published(connection: Connection, publication: str, source: PostgresSource, table: Table) -> Finding:
    member = connection.execute(
        "SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid"
        " WHERE p.pubname = %s AND r.prrelid = %s",
        [source.publication_name, table.oid],
    ).fetchone()
    if member is not None:
        return failed(
            "publication_table",
            f"publication {source.publication_name!r} names the partitions of {table.name} instead of the table",
            f"ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)",
        )
    return failed(
        "publication_table",
        f"publication {source.publication_name!r} does not carry {table.name}",
        f"ALTER PUBLICATION {publication} ADD TABLE {table.quoted}",
    )
