from hypothesis import given
from hypothesis import strategies as st

from daemon.core.progress import PartitionProgress


@given(st.data())
def test_only_the_contiguous_acknowledged_prefix_may_be_committed(data: st.DataObject) -> None:
    offsets = sorted(data.draw(st.sets(st.integers(0, 200), min_size=1, max_size=40)))
    order = data.draw(st.permutations(offsets))
    progress = PartitionProgress()
    for offset in offsets:
        progress.read(offset, float(offset))
    done: set[int] = set()
    assert progress.committable == offsets[0]
    for offset in order:
        progress.done(offset)
        done.add(offset)
        missing = [candidate for candidate in offsets if candidate not in done]
        assert progress.committable == (missing[0] if missing else offsets[-1] + 1)
        assert progress.fresh_through_s == max(
            (o for o in offsets if not missing or o < missing[0]), default=0.0
        )
        assert progress.pending == (len(offsets) - offsets.index(missing[0]) if missing else 0)


def test_nothing_read_means_nothing_to_commit() -> None:
    assert PartitionProgress().committable is None
