from hypothesis import given
from hypothesis import strategies as st

from daemon.core.progress import PartitionProgress


@given(st.data())
def test_only_the_contiguous_acknowledged_prefix_may_be_committed(data: st.DataObject) -> None:
    offsets = sorted(data.draw(st.sets(st.integers(0, 200), min_size=1, max_size=40)))
    order = data.draw(st.permutations(offsets))
    progress = PartitionProgress()
    receipts = {}
    for offset in offsets:
        receipts[offset] = progress.read(offset)
        receipts[offset].committed_at_s = float(offset)
    done: set[int] = set()
    assert progress.committable == offsets[0]
    for offset in order:
        receipts[offset].settle()
        done.add(offset)
        missing = [candidate for candidate in offsets if candidate not in done]
        assert progress.committable == (missing[0] if missing else offsets[-1] + 1)
        assert progress.fresh_through_s == max(
            (o for o in offsets if not missing or o < missing[0]), default=0.0
        )
        assert progress.pending == (len(offsets) - offsets.index(missing[0]) if missing else 0)


def test_nothing_read_means_nothing_to_commit() -> None:
    assert PartitionProgress().committable is None


def test_a_record_is_acknowledged_by_the_last_of_its_readers() -> None:
    progress = PartitionProgress()
    receipt = progress.read(7, readers=2)
    receipt.settle()
    assert (progress.committable, progress.pending) == (7, 1)
    receipt.settle()
    assert (progress.committable, progress.pending) == (8, 0)
