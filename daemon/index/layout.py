"""Where things are in Redis.

    <pipeline>:<version>                                  index; <pipeline> is its alias, which readers use
    lv:<pipeline>:<version>:doc:{<pipeline>.<bucket>}:<id>:<chunk>   what readers see: one hash per chunk
    lv:<pipeline>:<version>:meta:{<pipeline>.<bucket>}:<id>          bookkeeping of one document
    lv:<pipeline>:<version>:floor:{<pipeline>.<bucket>}              floor of one bucket
    lv:<pipeline>:versions                                index versions, their settings, which is active
    lv:<pipeline>:writers:<version>                       partitions whose changes are written to that version
    lv:<pipeline>:reconcile                               why a reconcile is due
    lv:<pipeline>:gaps                                    when each reason for one last came up; nothing clears it
    lv:<pipeline>:table                                   what the table was when last looked at
    lv:<pipeline>:partitions                              of an event topic: its ids must stay in theirs
    lv:source:<source>:identity                           which database its log was read from
    lv:source:<source>:anchors                            xids in 64 bits beside WAL positions
    lv:live                                               there while live changes are about; expires
    lv:positions:<group>:{<tag>}                          how far the log is applied, per shard

Bookkeeping is apart from the documents, because any change to an indexed hash inserts its vector anew. The
hash tag is one of 256 buckets of the pipeline: a document, its chunks, its bookkeeping and its floor are in
one slot of a cluster, and a pipeline is spread over all of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal
from zlib import crc32

BUCKETS = 256
LIVE_KEY = "lv:live"


def document_id(key: tuple[str, ...]) -> str:
    """Return the primary key as text: a single column as it is; several joined by "/", with "/" and "%" escaped.

    Keys of one pipeline have one number of columns, so no two of them give the same id.
    """
    if len(key) == 1:
        return key[0]
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in key)


def document_key(identifier: str, columns: int) -> tuple[str, ...]:
    """Return the inverse of `document_id` for a key of so many columns."""
    if columns == 1:
        return (identifier,)
    return tuple(part.replace("%2F", "/").replace("%25", "%") for part in identifier.split("/"))


def bucket_of(identifier: str) -> int:
    return crc32(identifier.encode()) % BUCKETS


@dataclass(frozen=True)
class Layout:
    """Names of one index version's keys."""

    pipeline: str
    version: int

    @property
    def alias(self) -> str:
        return self.pipeline

    @property
    def index(self) -> str:
        return f"{self.pipeline}:{self.version}"

    @cached_property
    def documents_prefix(self) -> str:
        return f"lv:{self.pipeline}:{self.version}:doc:"

    @cached_property
    def bookkeeping_prefix(self) -> str:
        return f"lv:{self.pipeline}:{self.version}:meta:"

    @cached_property
    def _tags(self) -> tuple[str, ...]:
        return tuple(f"{{{self.pipeline}.{bucket:02x}}}" for bucket in range(BUCKETS))

    def keys(self, identifier: str) -> tuple[str, str, str]:
        """Return bookkeeping, floor and stem of one document, as functions.lua takes them."""
        tag = self._tags[bucket_of(identifier)]
        return (
            f"{self.bookkeeping_prefix}{tag}:{identifier}",
            f"lv:{self.pipeline}:{self.version}:floor:{tag}",
            f"{self.documents_prefix}{tag}:{identifier}",
        )

    def bookkeeping(self, identifier: str) -> str:
        return f"{self.bookkeeping_prefix}{self._tags[bucket_of(identifier)]}:{identifier}"

    def chunk_key(self, identifier: str, number: int) -> str:
        """Return the key of one chunk's hash, as functions.lua derives it from the stem."""
        return f"{self.keys(identifier)[2]}:{number}"

    def floors(self) -> Iterable[str]:
        return (f"lv:{self.pipeline}:{self.version}:floor:{tag}" for tag in self._tags)

    def identifier(self, bookkeeping_key: str) -> str:
        """Return the document's id out of its bookkeeping key."""
        return bookkeeping_key[len(self.bookkeeping_prefix) :].split("}:", 1)[1]


def pipeline_key(pipeline: str, part: Literal["versions", "reconcile", "gaps", "table", "partitions"]) -> str:
    return f"lv:{pipeline}:{part}"


def source_key(source: str, part: Literal["identity", "anchors"]) -> str:
    return f"lv:source:{source}:{part}"


def writers_key(pipeline: str, version: int) -> str:
    return f"lv:{pipeline}:writers:{version}"


def positions_key(group: str, tag: str) -> str:
    return f"lv:positions:{group}:{{{tag}}}"
