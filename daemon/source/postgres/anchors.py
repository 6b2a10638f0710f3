"""Moments at which both the WAL position and the next 64-bit xid were known, kept in Redis beside the data.

Debezium sends xids modulo 2^32; a change's xid is widened beside the anchor nearest before it. One is taken at
each start and each hour: between two, fewer than 2^31 xids may pass.
"""

from bisect import insort
from typing import Any, cast

from daemon.core.version import Anchor, widen_xid
from daemon.errors import StopPipeline
from daemon.index.connection import Client, translated
from daemon.index.layout import source_key
from daemon.source.postgres.reader import PostgresReader


class XidAnchors:
    """The anchors of one source."""

    def __init__(self, client: Client, source: str) -> None:
        self._client = cast(Any, client)
        self._key = source_key(source, "anchors")
        self._source = source
        self._anchors: list[Anchor] = []

    async def load(self, era: int) -> bool:
        """Read the stored anchors; return whether there are any of that era."""
        with translated():
            stored = await self._client.smembers(self._key)
        self._anchors = sorted(Anchor(*map(int, text.split(b":"))) for text in stored)
        return any(anchor.era == era for anchor in self._anchors)

    async def add(self, source: PostgresReader) -> None:
        """Take an anchor now, and store it."""
        anchor = await source.anchor()
        if anchor not in self._anchors:
            insort(self._anchors, anchor)
        await self.store()

    async def store(self) -> None:
        """Write the anchors that are known; again where Redis may have lost them."""
        if self._anchors:
            texts = [f"{anchor.era}:{anchor.lsn}:{anchor.xid}" for anchor in self._anchors]
            with translated():
                await self._client.sadd(self._key, *texts)

    def widen(self, xid: int, era: int, lsn: int) -> int:
        """Widen an xid, see `core.version.widen_xid`.

        Raises:
            StopPipeline: no anchor of that era is known.
        """
        try:
            return widen_xid(xid, era, lsn, self._anchors)
        except LookupError:
            raise StopPipeline(
                f"source {self._source!r} sends changes of era {era}, which this daemon never saw begin; set the "
                "source's `era` in daemon.toml to the connector's and start the daemon again"
            ) from None
