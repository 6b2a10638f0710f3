"""The load of a measurement: real texts of a given length, inserted one commit at a time at given times."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import psycopg

from daemon.errors import LivevecError

_TOKENS_PER_WORD = 1.3
"""Of English glosses with a BERT word-piece vocabulary."""
_SPECIAL_TOKENS = 2


@dataclass(frozen=True, slots=True)
class LoadRow:
    """One row to insert."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row and when it is inserted, in seconds from the beginning."""

    at_s: float
    row: LoadRow


def random_arrivals(rows: Sequence[LoadRow], rate: float, seed: int) -> list[Arrival]:
    """A Poisson process: as many clients that know nothing of one another would insert; the same for a seed."""
    draw = random.Random(seed)
    at_s = 0.0
    arrivals = []
    for row in rows:
        arrivals.append(Arrival(at_s, row))
        at_s += draw.expovariate(rate)
    return arrivals


def rows_of(sentences: Iterable[str], tokens: int, count: int) -> list[LoadRow]:
    """So many rows of about so many tokens each, cut from sentences joined in their order; all texts differ.

    Raises:
        ValueError: there are no sentences.
    """
    words_wanted = max(1, round((tokens - _SPECIAL_TOKENS) / _TOKENS_PER_WORD))
    words = _words(sentences)
    rows: list[LoadRow] = []
    seen: set[str] = set()
    while len(rows) < count:
        text = " ".join(next(words) for _ in range(words_wanted))
        if text in seen:
            # Short texts repeat themselves, and an embedder's caller may embed equal ones once.
            text = f"{text} {len(rows)}"
        seen.add(text)
        rows.append(LoadRow(len(rows) + 1, text))
    return rows


def _words(sentences: Iterable[str]) -> Iterator[str]:
    known = [word for sentence in sentences for word in sentence.split()]
    if not known:
        raise ValueError("no sentences")
    return cycle(known)


class Table:
    """A table of texts.

    Args:
        connection: in autocommit mode, so that each insert is its own commit.
        name: `schema.table`.
    """

    def __init__(self, connection: "psycopg.Connection[tuple[object, ...]]", name: str) -> None:
        self._connection = connection
        self.name = name

    def create(self) -> None:
        self.drop()
        self._connection.execute(f"CREATE TABLE {self.name} (id bigint PRIMARY KEY, body text)".encode())

    def drop(self) -> None:
        self._connection.execute(f"DROP TABLE IF EXISTS {self.name}".encode())

    def insert(self, rows: Sequence[LoadRow], rate: float, on_insert: Callable[[int], None]) -> None:
        """Insert at a steady rate: each at its own time, whatever the one before took.

        Raises:
            LivevecError: PostgreSQL refuses.
        """
        self.replay([Arrival(number / rate, row) for number, row in enumerate(rows)], on_insert)

    def replay(self, arrivals: Sequence[Arrival], on_insert: Callable[[int], None]) -> None:
        """Insert each row at its time; those that are late go at once, in their order.

        Raises:
            LivevecError: PostgreSQL refuses.
        """
        statement = f"INSERT INTO {self.name} VALUES (%s, %s)".encode()
        began_s = time.monotonic()
        for number, arrival in enumerate(arrivals):
            wait_s = began_s + arrival.at_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            self.execute(statement, (arrival.row.id, arrival.row.text))
            on_insert(number + 1)

    def execute(self, statement: bytes, parameters: Sequence[object]) -> None:
        """One statement, one commit.

        Raises:
            LivevecError: PostgreSQL refuses.
        """
        try:
            self._connection.execute(statement, parameters)
        except psycopg.Error as error:
            raise LivevecError(f"PostgreSQL refused a statement ({error}); see `livevec status`") from error

    def texts(self) -> dict[str, str]:
        """What the table holds: text by id.

        Raises:
            LivevecError: PostgreSQL refuses.
        """
        try:
            rows = self._connection.execute(f"SELECT id, body FROM {self.name}".encode()).fetchall()
        except psycopg.Error as error:
            raise LivevecError(f"PostgreSQL refused a query ({error}); see `livevec status`") from error
        return {str(identifier): str(body) for identifier, body in rows}

    def copy(self, rows: Sequence[LoadRow]) -> None:
        """Insert all in one COPY, committed when this returns.

        Raises:
            LivevecError: PostgreSQL refuses.
        """
        try:
            with (
                self._connection.cursor() as cursor,
                cursor.copy(f"COPY {self.name} FROM STDIN".encode()) as copy,
            ):
                for row in rows:
                    copy.write_row((row.id, row.text))
        except psycopg.Error as error:
            raise LivevecError(f"PostgreSQL refused a COPY ({error}); see `livevec status`") from error

    def update_unchanged(self) -> int:
        """Update every row to what it is, in one transaction; answers how many there are.

        Raises:
            LivevecError: PostgreSQL refuses.
        """
        try:
            return self._connection.execute(f"UPDATE {self.name} SET body = body".encode()).rowcount
        except psycopg.Error as error:
            raise LivevecError(f"PostgreSQL refused an update ({error}); see `livevec status`") from error
