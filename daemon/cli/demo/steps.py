"""What the demonstration does: it fills a table, edits it, and finds by meaning what was changed a moment before."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import psycopg
import redis
from redis.exceptions import RedisError

from daemon.embedding.factory import make_embedder
from daemon.errors import ConfigError, LivevecError
from daemon.index.connection import connect
from daemon.index.reader import Hit, knn
from daemon.settings import LOCAL, Config, Pipeline, PostgresSource
from deploy.local.corpus import CorpusEntry

PIPELINE = "catalog"
_COLUMNS = "id bigint PRIMARY KEY, title text, body text, category text, price numeric(10,2)"
_SEARCH_TIMEOUT_S = 15.0
_SEARCH_POLL_S = 0.002
_HITS = 3


@dataclass(frozen=True)
class Surprise:
    """A text that is in no dictionary, and a question that asks for it in other words."""

    title: str
    body: str
    question: str


SURPRISES = (
    Surprise(
        "lost mittens",
        "a shelf at the skating rink where single gloves wait for their owners",
        "I dropped one of my gloves while ice skating",
    ),
    Surprise(
        "weekend cycle workshop",
        "a garage that mends broken bikes at the weekend",
        "how do I get my bicycle repaired on a Sunday?",
    ),
    Surprise(
        "midnight bakery",
        "fresh loaves and rolls are sold here from three in the morning",
        "where can I buy bread in the middle of the night?",
    ),
)


@dataclass(frozen=True)
class FoundAgain:
    """The answer of the search. `found_after_ms`: from the commit of the edit until a search had it among its hits."""

    query: str
    edited_id: int
    found_after_ms: float
    hits: tuple[Hit, ...]


def catalog_of(config: Config) -> tuple[Pipeline, PostgresSource]:
    """Return the demonstration's pipeline and source.

    Raises:
        ConfigError: the configuration has no such pipeline, or names servers other than the embedded stack's.
    """
    pipeline = config.pipeline(PIPELINE)
    source = config.source(pipeline.source)
    if not isinstance(source, PostgresSource):
        raise ConfigError(f"the demo needs pipeline {PIPELINE!r} to mirror a PostgreSQL table")
    addresses = {
        "kafka.bootstrap_servers": config.kafka.bootstrap_servers,
        "connect.url": config.connect.url,
        "redis.url": config.redis.url.get_secret_value(),
        "embedding.url": config.embedding.url,
        f"sources.{source.name}.dsn": source.dsn.get_secret_value(),
    }
    other = [key for key, address in addresses.items() if address != LOCAL]
    if other:
        raise ConfigError(
            f"the demo writes only to the embedded stack, but {', '.join(other)} names another server; run it in "
            "a folder without daemon.toml, or give another file with --config"
        )
    return pipeline, source


class Catalog:
    """The demonstration's table."""

    def __init__(self, dsn: str, table: str) -> None:
        self._table = table
        self.connection = psycopg.connect(dsn, autocommit=True)

    def close(self) -> None:
        self.connection.close()

    def fill(self, entries: Sequence[CorpusEntry], on_count: Callable[[int, int], None]) -> int:
        """Create the table, COPY the rows that it lacks, and return how many it has; `on_count` gets (done, total)."""
        self.connection.execute(f"CREATE TABLE IF NOT EXISTS {self._table} ({_COLUMNS})".encode())
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.execute(f"CREATE TEMP TABLE loading (LIKE {self._table}) ON COMMIT DROP".encode())
            with cursor.copy("COPY loading (id, title, body, category, price) FROM STDIN") as copy:
                for number, entry in enumerate(entries, 1):
                    price = f"{(entry.id * 37 % 9_900 + 100) / 100:.2f}"
                    copy.write_row((entry.id, entry.title, entry.body, entry.category, price))
                    if number % 1000 == 0 or number == len(entries):
                        on_count(number, len(entries))
            cursor.execute(f"INSERT INTO {self._table} SELECT * FROM loading ON CONFLICT DO NOTHING".encode())
        row = self.connection.execute(f"SELECT count(*) FROM {self._table}".encode()).fetchone()
        assert row is not None
        return int(row[0])

    def edit(self, identifier: int, title: str | None, body: str) -> None:
        """Give a row another text; it is committed when this returns."""
        statement = f"UPDATE {self._table} SET title = coalesce(%s, title), body = %s WHERE id = %s"
        self.connection.execute(statement.encode(), (title, body, identifier))


class Editor:
    """Edits random rows at a steady rate, in a thread of its own; each edit is one commit with a new text."""

    def __init__(self, dsn: str, table: str, entries: Sequence[CorpusEntry], rate: float) -> None:
        self._catalog = Catalog(dsn, table)
        self._entries = entries
        self._rate = rate
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.edits = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
            self._catalog.close()

    def check(self) -> None:
        """Raise LivevecError where PostgreSQL refused an edit."""
        if self._failure is not None:
            raise LivevecError(f"the demo cannot edit its table: {self._failure}; see PostgreSQL's log")

    def _run(self) -> None:
        rnd = random.Random()
        began_s = time.monotonic()
        try:
            while not self._stop.wait(began_s + self.edits / self._rate - time.monotonic()):
                self.edits += 1
                row, first, second = (rnd.choice(self._entries) for _ in range(3))
                self._catalog.edit(row.id, None, f"{first.body}; {second.body}")
        except psycopg.Error as error:
            self._failure = error


def documents(redis_url: str, pipeline: str) -> int:
    """Return how many documents a search can find; 0 while there is no index."""
    client = redis.Redis.from_url(redis_url, protocol=2)
    try:
        return int(cast(Any, client.ft(pipeline)).info()["num_docs"])
    except RedisError:
        return 0
    finally:
        client.close()


async def find_a_fresh_text(
    config: Config, pipeline: Pipeline, catalog: Catalog, row: CorpusEntry
) -> FoundAgain:
    """Change a row, then search for its new meaning in other words until the row is found, or raise LivevecError."""
    surprise = random.choice(SURPRISES)
    body = f"{surprise.body} ({datetime.now(UTC):%H:%M:%S.%f})"
    embedder, client = make_embedder(config.embedding), connect(config.redis)
    try:
        await embedder.start()
        vector = (await embedder.embed([surprise.question], prompt="query"))[0]
        await knn(client, pipeline.name, vector, _HITS, type=pipeline.index.type)
        catalog.edit(row.id, surprise.title, body)
        committed_s = time.perf_counter()
        while time.perf_counter() < committed_s + _SEARCH_TIMEOUT_S:
            index = pipeline.index
            hits = await knn(
                client, pipeline.name, vector, _HITS, type=index.type, ef_runtime=index.ef_runtime
            )
            took_ms = round((time.perf_counter() - committed_s) * 1000, 3)
            if any(hit.text.endswith(body) for hit in hits):
                return FoundAgain(surprise.question, row.id, took_ms, tuple(hits))
            await asyncio.sleep(_SEARCH_POLL_S)
    finally:
        await embedder.close()
        await client.aclose()
    raise LivevecError(
        f"row {row.id} was changed, but no search found its new text within {_SEARCH_TIMEOUT_S:g} s; "
        "see `livevec status`"
    )
