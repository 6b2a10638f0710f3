"""The load of a measurement: real texts of a given length, inserted one commit at a time at given times."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import psycopg

from daemon.errors import LivevecError

_TOKENS_PER_WORD = 1.3
"""For English glosses with a BERT word-piece vocabulary."""
_SPECIAL_TOKENS = 2


@dataclass(frozen=True, slots=True)
class LoadRow:
    """One row to insert."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row, and when it is inserted, in seconds from the beginning."""

    at_s: float
    row: LoadRow


def rows_of(sentences: Iterable[str], tokens: int, count: int) -> list[LoadRow]:
    """Return `count` rows of about `tokens` tokens each, cut from the joined sentences; all texts differ.

    Raises:
        ValueError: there are no sentences.
    """
    words_per_row = max(1, round((tokens - _SPECIAL_TOKENS) / _TOKENS_PER_WORD))
    known = [word for sentence in sentences for word in sentence.split()]
    if not known:
        raise ValueError("there are no sentences to cut texts from")
    words = cycle(known)
    rows: list[LoadRow] = []
    seen: set[str] = set()
    while len(rows) < count:
        text = " ".join(next(words) for _ in range(words_per_row))
        if text in seen:
            # Short texts repeat themselves, and an embedder's caller may embed equal ones once.
            text = f"{text} {len(rows)}"
        seen.add(text)
        rows.append(LoadRow(len(rows) + 1, text))
    return rows


class LoadTable:
    """A table of texts in PostgreSQL.

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
        """Insert at a steady rate: each row at its own time, however long the one before took.

        Raises:
            LivevecError: PostgreSQL refused.
        """
        self.replay([Arrival(number / rate, row) for number, row in enumerate(rows)], on_insert)

    def replay(self, arrivals: Sequence[Arrival], on_insert: Callable[[int], None]) -> None:
        """Insert each row at its time; rows that are late are inserted at once, in their order.

        Raises:
            LivevecError: PostgreSQL refused.
        """
        statement = f"INSERT INTO {self.name} VALUES (%s, %s)"
        began_s = time.monotonic()
        for number, arrival in enumerate(arrivals):
            wait_s = began_s + arrival.at_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            self.execute(statement, (arrival.row.id, arrival.row.text))
            on_insert(number + 1)

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> "psycopg.Cursor[Any]":
        """Run one statement in its own commit.

        Raises:
            LivevecError: PostgreSQL refused.
        """
        try:
            return self._connection.execute(statement.encode(), parameters)
        except psycopg.Error as error:
            raise LivevecError(f"PostgreSQL refused a statement ({error}); see `livevec status`") from error

    def copy(self, rows: Sequence[LoadRow]) -> None:
        """Insert all rows in one COPY, committed when this returns.

        Raises:
            LivevecError: PostgreSQL refused.
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
