"""How each rule is switched off in the real daemon; see `faults.NOT_KEPT` for what goes on instead."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import orjson

from daemon.core import plan
from daemon.core.change import Change, Operation
from daemon.core.version import LogVersion, SnapshotVersion, widen_xid
from daemon.core.work import Work
from daemon.errors import RejectRow
from daemon.index.writer import IndexWriter
from daemon.projection.projector import Projector
from daemon.source.envelope import EnvelopeDecoder
from daemon.source.postgres.anchors import XidAnchors
from daemon.source.record import Record
from tests.support.ordering.faults import Rule
from tests.support.shell.postgres import FakePostgresReader

_BEYOND_EVERY_LSN = 1 << 64


def _versions_of_changes() -> AbstractContextManager[Any]:
    async def reread(self: Projector, hints: Any, on_embedded: Any = lambda: None) -> Any:
        changes = [hint.change for hint in hints]
        results = await self._patience.call("source", self._rows.reread_each, [c.key for c in changes])
        ready: list[Work] = []
        for work, change, result in zip(hints, changes, results, strict=True):
            assert not isinstance(result, RejectRow)
            work.version, work.row = change.version or result[0], result[1]
            ready.append(work)
        return await self.process(ready, on_embedded), []

    return patch.object(Projector, "reread", reread)


def _snapshot_events_are_changes() -> AbstractContextManager[Any]:
    decode = EnvelopeDecoder.decode

    def decoded(self: EnvelopeDecoder, record: Record) -> Change | None:
        if record.value is not None:
            envelope = orjson.loads(record.value)
            if envelope["op"] == "r":
                return decode(self, replace(record, value=orjson.dumps({**envelope, "op": "c"})))
        return decode(self, record)

    return patch.object(EnvelopeDecoder, "decode", decoded)


def _null_is_zero() -> AbstractContextManager[Any]:
    version_of = EnvelopeDecoder._version

    def version(self: EnvelopeDecoder, era: int, source: Any) -> Any:
        found, xid = version_of(self, era, source)
        return found or LogVersion(era, 0, source["lsn"], xid or 0), xid

    return patch.object(EnvelopeDecoder, "_version", version)


def _old_is_written() -> AbstractContextManager[Any]:
    return patch.object(plan, "is_hint", lambda change, *_: change.operation is Operation.REREAD)


def _only_seek() -> AbstractContextManager[Any]:
    mark = IndexWriter.mark_for_reconcile

    async def marked(self: IndexWriter, reason: str) -> None:
        if reason != "redis_went_back":
            await mark(self, reason)

    return patch.object(IndexWriter, "mark_for_reconcile", marked)


def _widen_beside_the_newest() -> AbstractContextManager[Any]:
    def widen(self: XidAnchors, xid: int, era: int, lsn: int) -> int:
        del lsn
        return widen_xid(xid, era, _BEYOND_EVERY_LSN, self._anchors)

    return patch.object(XidAnchors, "widen", widen)


def _of_a_standby() -> AbstractContextManager[Any]:
    version_of = FakePostgresReader._version

    def version(self: FakePostgresReader) -> SnapshotVersion:
        found = version_of(self)
        return SnapshotVersion(found.era, found.xmax, found.xmax)

    return patch.object(FakePostgresReader, "_version", version)


NOT_KEPT_BY: dict[Rule, Callable[[], AbstractContextManager[Any]]] = {
    Rule.TOAST_SNAPSHOT: _versions_of_changes,
    Rule.R_IS_A_HINT: _snapshot_events_are_changes,
    Rule.NULL_IS_A_HINT: _null_is_zero,
    Rule.TTL_GUARD: _old_is_written,
    Rule.ROLLBACK_RECONCILE: _only_seek,
    Rule.START_BARRIER: nullcontext,  # the worker of a history looks at the rules itself
    Rule.WIDE_XID: _widen_beside_the_newest,
    Rule.PRIMARY_ONLY: _of_a_standby,
    Rule.ORPHAN_SWEEP: nullcontext,  # so here
}
