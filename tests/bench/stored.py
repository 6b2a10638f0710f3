"""Comparing what readers find in the index with the table, without the daemon's own code for it."""

from collections.abc import Mapping
from dataclasses import dataclass

import redis

from daemon.index.connection import translated
from daemon.index.layout import Layout

_FIRST_VERSION = 1
_PIPELINE = 1000


@dataclass(frozen=True)
class Differences:
    """Counts of rows without a document, documents with another text, and documents without a row."""

    missing: int
    stale: int
    orphaned: int

    @property
    def lost(self) -> int:
        """The changes that the index does not know."""
        return self.missing + self.stale + self.orphaned


def stored_texts(redis_url: str, pipeline: str) -> dict[str, str]:
    """Return the text of each document by its id.

    Raises:
        LivevecError: Redis refused, or does not answer.
    """
    texts: dict[str, str] = {}
    with translated(), redis.Redis.from_url(redis_url) as client:
        keys = list(
            client.scan_iter(match=f"{Layout(pipeline, _FIRST_VERSION).documents_prefix}*", count=_PIPELINE)
        )
        for start in range(0, len(keys), _PIPELINE):
            pipe = client.pipeline(transaction=False)
            for key in keys[start : start + _PIPELINE]:
                pipe.hmget(key, "id", "text")
            texts |= {
                identifier.decode(): text.decode()
                for identifier, text in pipe.execute()
                if identifier is not None
            }
    return texts


def differences(expected: Mapping[str, str], stored: Mapping[str, str]) -> Differences:
    """Compare two mappings of texts by id."""
    return Differences(
        missing=len(expected.keys() - stored.keys()),
        stale=sum(stored[key] != expected[key] for key in expected.keys() & stored.keys()),
        orphaned=len(stored.keys() - expected.keys()),
    )
