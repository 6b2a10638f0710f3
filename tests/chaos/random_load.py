"""A steady random load of every kind of change, from a thread of its own."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.mirrored_table import MirroredTable

WORDS = ["river", "engine", "violin", "market", "galaxy", "bread", "glacier", "ballot", "enzyme", "harbour"]
KEYS = 400


class RandomLoad:
    """Inserts, updates, deletes, primary-key changes, swaps and now and then a TRUNCATE.

    Attributes:
        statements: executed so far.
        refused: failed because PostgreSQL was away, or because a key was taken.
    """

    def __init__(self, table: MirroredTable, seed: int, rate: float, truncates: bool) -> None:
        self._table = table
        self._rnd = random.Random(seed)
        self._pause_s = 1 / rate
        self._truncates = truncates
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.statements = 0
        self.refused = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        connection: psycopg.Connection | None = None
        while not self._stop.is_set():
            started_s = time.monotonic()
            try:
                if connection is None:
                    connection = psycopg.connect(self._table.addresses.postgres_dsn, autocommit=True)
                self._statement(connection)
                self.statements += 1
            except psycopg.errors.UniqueViolation:
                self.refused += 1
            except psycopg.OperationalError:
                self.refused += 1
                connection = None
                time.sleep(0.1)
            time.sleep(max(0.0, started_s + self._pause_s - time.monotonic()))
        if connection is not None:
            connection.close()

    def _statement(self, db: psycopg.Connection) -> None:
        rnd, name = self._rnd, self._table.name
        key, other = rnd.randrange(KEYS), rnd.randrange(KEYS)
        text = " ".join(rnd.choices(WORDS, k=rnd.randrange(2, 12)))
        dice = rnd.random()
        if dice < 0.45:
            db.execute(
                f"insert into {name} values (%s, %s, %s, %s, %s) "
                "on conflict (id) do update set title = excluded.title, body = excluded.body",
                (key, text.split()[0], text, rnd.choice("abc"), rnd.randrange(100)),
            )
        elif dice < 0.60:
            db.execute(f"update {name} set price = %s where id = %s", (rnd.randrange(100), key))
        elif dice < 0.70:
            db.execute(f"update {name} set title = title where id between %s and %s", (key, key + 3))
        elif dice < 0.83:
            db.execute(f"delete from {name} where id = %s", (key,))
        elif dice < 0.91:
            db.execute(f"update {name} set id = %s where id = %s", (other, key))
        elif dice < 0.995 or not self._truncates:
            with db.transaction():
                db.execute(f"delete from {name} where id = %s", (key,))
                db.execute(f"insert into {name} values (%s, 'again', %s, 'a', 1)", (key, text))
        else:
            db.execute(f"truncate {name}")


@contextmanager
def random_load(
    table: MirroredTable, seed: int = 1, rate: float = 100.0, truncates: bool = True
) -> Iterator[RandomLoad]:
    load = RandomLoad(table, seed, rate, truncates)
    load.start()
    try:
        yield load
    finally:
        load.stop()
