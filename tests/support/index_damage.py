"""Every way in which an index can differ from its table, made by hand on a table at rest."""

from collections.abc import Callable
from typing import Any

from daemon.index.layout import Layout
from daemon.verify.differences import Difference as D
from tests.support.mirrored_table import MirroredTable

Found = dict[str, frozenset[D]]
"""What a check must tell of it, by document."""


def key_of(table: MirroredTable, identifier: str, chunk: int = 0) -> str:
    return Layout(table.name, 1).chunk_key(identifier, chunk)


def bookkeeping_of(table: MirroredTable, identifier: str) -> str:
    return Layout(table.name, 1).bookkeeping(identifier)


def missing(table: MirroredTable) -> Found:
    table.redis.delete(bookkeeping_of(table, "1"), key_of(table, "1"))
    return {"1": frozenset({D.MISSING})}


def stale_row(table: MirroredTable) -> Found:
    table.execute("update $T set body = 'changed while nobody looked' where id = 2")
    return {"2": frozenset({D.STALE})}


def stale_metadata(table: MirroredTable) -> Found:
    table.execute("update $T set price = null, category = 'other' where id = 3")
    return {"3": frozenset({D.STALE})}


def changed_text(table: MirroredTable) -> Found:
    table.redis.hset(key_of(table, "4"), "text", "something else")
    return {"4": frozenset({D.STALE, D.WRONG_VECTOR})}


def changed_field(table: MirroredTable) -> Found:
    table.redis.hset(key_of(table, "5"), "category", "something else")
    return {"5": frozenset({D.STALE})}


def orphaned(table: MirroredTable) -> Found:
    table.execute("delete from $T where id = 6")
    return {"6": frozenset({D.ORPHANED})}


def hash_without_bookkeeping(table: MirroredTable) -> Found:
    copy: Any = table.redis.hgetall(key_of(table, "7"))
    for identifier in ("9999", "no number"):
        table.redis.hset(key_of(table, identifier), mapping=copy)
    return {one: frozenset({D.ORPHANED}) for one in ("9999", "no number")}


def wrong_vector(table: MirroredTable) -> Found:
    other = table.redis.hget(key_of(table, "9"), "embedding")
    table.redis.hset(key_of(table, "8"), "embedding", other)
    return {"8": frozenset({D.WRONG_VECTOR})}


def vector_of_wrong_length(table: MirroredTable) -> Found:
    table.redis.hset(key_of(table, "10"), "embedding", b"short")
    return {"10": frozenset({D.WRONG_VECTOR, D.NOT_INDEXED})}


def no_vector(table: MirroredTable) -> Found:
    table.redis.hdel(key_of(table, "11"), "embedding")
    return {"11": frozenset({D.WRONG_VECTOR})}


def surplus_chunk(table: MirroredTable) -> Found:
    chunk: Any = table.redis.hgetall(key_of(table, "12"))
    table.redis.hset(key_of(table, "12", 1), mapping=chunk)
    return {"12": frozenset({D.SURPLUS_CHUNKS})}


def lost_chunk(table: MirroredTable) -> Found:
    table.redis.delete(key_of(table, "13"))
    return {"13": frozenset({D.LOST_CHUNKS})}


def no_index(table: MirroredTable) -> Found:
    table.redis.execute_command("FT.DROPINDEX", f"{table.name}:1")
    return {key: frozenset({D.NOT_INDEXED}) for key in table.documents()}


TO_DOCUMENTS: tuple[Callable[[MirroredTable], Found], ...] = (
    *(missing, stale_row, stale_metadata, changed_text, changed_field, orphaned, hash_without_bookkeeping),
    *(wrong_vector, vector_of_wrong_length, no_vector, surplus_chunk, lost_chunk),
)
"""All but those of the whole index; each is of other documents, so that they can be made together."""
