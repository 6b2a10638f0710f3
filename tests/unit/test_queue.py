from daemon.core.batching import Waiting
from daemon.core.change import Change, Operation
from daemon.core.progress import PartitionProgress
from daemon.core.queue import ChangeQueue, Item
from daemon.core.version import LogVersion


def item(key: str, lsn: int | None, arrived_s: float = 0.0, operation: Operation = Operation.UPSERT) -> Item:
    version = None if lsn is None else LogVersion(0, lsn, lsn, 1)
    change = Change(operation, (key,), {}, version, 0, 1, 0.0, 0.0)
    receipt = PartitionProgress().read(lsn or 0)
    return Item(key, change, [receipt], None, Waiting(arrived_s, arrived_s + 0.1, 5), 100)


def test_changes_of_one_key_collapse_into_the_newest_and_keep_the_oldest_deadline() -> None:
    queue = ChangeQueue()
    assert not queue.put(item("a", 10, 1.0))
    assert not queue.put(item("b", 11, 2.0))
    assert queue.put(item("a", 30, 3.0))
    assert queue.put(item("a", 20, 4.0))
    assert (len(queue), queue.changes, queue.size_bytes) == (2, 4, 400)
    first, second = queue.take(5)
    assert first.change.version == LogVersion(0, 30, 30, 1)
    assert first.waiting.arrived_s == 1.0
    assert [receipt.offset for receipt in first.receipts] == [30, 10, 20]
    assert second.id == "b"
    assert (len(queue), queue.changes, queue.size_bytes) == (0, 0, 0)


def test_a_hint_without_a_place_in_the_log_never_collapses() -> None:
    queue = ChangeQueue()
    queue.put(item("a", 10))
    assert not queue.put(item("a", None, operation=Operation.REREAD))
    assert not queue.put(item("a", None, operation=Operation.REREAD))
    assert len(queue) == 3


def test_a_delete_that_is_newer_takes_the_place_of_an_upsert() -> None:
    queue = ChangeQueue()
    queue.put(item("a", 10))
    queue.put(item("a", 11, operation=Operation.DELETE))
    assert [one.change.operation for one in queue.take(5)] == [Operation.DELETE]
