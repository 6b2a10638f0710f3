"""What `livevec status` finds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.bench.percentiles import Percentiles


@dataclass(frozen=True)
class Part:
    """One part: what was found, and what to do where it is not `ok`."""

    name: str
    ok: bool
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class PartitionLag:
    """`committed`: next offset that the group will read, None before its first commit."""

    topic: str
    partition: int
    committed: int | None
    end: int
    lag: int


@dataclass(frozen=True)
class IndexState:
    """Chunks that a search can find, those that Redis could not index, and why a reconcile is due."""

    pipeline: str
    documents: int
    indexing_failures: int
    needs_reconcile: tuple[str, ...]


@dataclass(frozen=True)
class SlotState:
    """A source's replication slot. `lag_bytes`: log that PostgreSQL wrote and the slot has not confirmed."""

    source: str
    slot: str
    active: bool
    lag_bytes: int


@dataclass(frozen=True)
class Freshness:
    """How fresh the indexes are.

    Attributes:
        behind_s: by source, seconds since the moment up to which every change is searchable.
        commit_to_searchable_ms: of the samples of the last minutes; None where no daemon answers.
        stages_ms: the same by stage.
    """

    behind_s: dict[str, float] = field(default_factory=dict)
    commit_to_searchable_ms: Percentiles | None = None
    stages_ms: dict[str, Percentiles] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """What one probe found."""

    parts: Sequence[Part]
    lag: Sequence[PartitionLag] = ()
    indexes: Sequence[IndexState] = ()
    slots: Sequence[SlotState] = ()
    freshness: Freshness | None = None


@dataclass(frozen=True)
class Report:
    """Everything that `livevec status` shows."""

    ok: bool
    parts: tuple[Part, ...]
    slots: tuple[SlotState, ...]
    lag: tuple[PartitionLag, ...]
    indexes: tuple[IndexState, ...]
    freshness: Freshness
