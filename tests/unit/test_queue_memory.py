"""The bound of the queue's memory is only as good as the estimate that it is counted in."""

import gc
import tracemalloc

import orjson
import pytest

from daemon.core.batching import Waiting
from daemon.core.progress import PartitionProgress
from daemon.core.queue import ChangeQueue, Item, size_estimate
from daemon.index.layout import document_id
from daemon.source.envelope import EnvelopeDecoder
from daemon.source.record import Record

CHANGES = 2_000


def record(number: int, text: str) -> Record:
    envelope = {
        "before": None,
        "after": {"id": number, "body": f"{text} {number}"},
        "source": {
            "version": "3.7.0.Final",
            "connector": "postgresql",
            "name": "a",
            "ts_ms": 1_795_577_512_138,
            "snapshot": "false",
            "db": "a",
            "sequence": '["26695600","26695656"]',
            "ts_us": 1_795_577_512_138_123,
            "schema": "public",
            "table": "t",
            "txId": 780 + number,
            "lsn": 26_695_656 + number,
            "xmin": None,
        },
        "transaction": None,
        "op": "c",
        "ts_ms": 1_795_577_512_140,
    }
    # Copied: what orjson writes into is larger than what it wrote.
    key, value = bytes(bytearray(orjson.dumps({"id": number}))), bytes(bytearray(orjson.dumps(envelope)))
    at_s = 1_795_577_512.0 + number
    return Record("a.public.t", 0, number, key, value, (), at_s, at_s)


@pytest.mark.parametrize("text", ["a short text", "a text of some length " * 40, "long " * 4_000])
def test_a_waiting_change_takes_about_the_memory_that_it_is_counted_with(text: str) -> None:
    decoder = EnvelopeDecoder("t", ("id",), ("body",), lambda xid, era, lsn: xid + (1 << 32))
    progress, queue = PartitionProgress(), ChangeQueue()
    gc.collect()
    tracemalloc.start()
    try:
        before_bytes, _ = tracemalloc.get_traced_memory()
        for number in range(CHANGES):
            one = record(number, text)
            change = decoder.decode(one)
            assert change is not None
            queue.put(
                Item(
                    id=document_id(change.key),
                    change=change,
                    receipts=[progress.read(number)],
                    record=one,
                    waiting=Waiting(one.received_at_s, change.committed_at_s + 0.1, 10),
                    size_bytes=size_estimate(one.size_bytes),
                    received_at_s=one.received_at_s,
                )
            )
        taken_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    finally:
        tracemalloc.stop()
    assert queue.size_bytes == pytest.approx(taken_bytes, rel=0.35)
