"""What reindexing takes and gives: settings, keys, positions and counts; never the text of a row."""

from dataclasses import replace
from datetime import timedelta

from pydantic import Field

from daemon.index.registry import IndexVersion
from workflows.progress import Contract

NEIGHBOURS = 10
"""Answers of one query that are compared: the k of recall@k."""


class Changes(Contract):
    """Settings in which the new version is to differ from the one that readers see; None: as that one has it."""

    model: str | None = None
    dimension: int | None = None
    m: int | None = None
    ef_construction: int | None = None
    metric: str | None = None
    type: str | None = None
    text: str | None = None
    chunking: tuple[int, int] | None = None
    metadata: tuple[tuple[str, str, str], ...] | None = None

    def applied(self, active: IndexVersion) -> IndexVersion:
        """Return the settings that are wanted; of another model the fingerprint is not known yet, and may be empty."""
        given = self.model_dump(exclude_none=True)
        if self.chunking is not None:
            given["chunking"] = self.chunking
        if self.metadata is not None:
            given["metadata"] = self.metadata
        wanted = replace(active, **given)
        return wanted if wanted.model == active.model else replace(wanted, fingerprint="")


class PlanOrder(Contract):
    """What a reindex is asked for; `force`: also where the new version would not differ."""

    pipeline: str
    changes: Changes
    force: bool = False


class ReindexPlan(Contract):
    """What a reindex keeps from its start to its end.

    Attributes:
        old: the version that readers see.
        wanted: settings of the new one; its number comes later.
        differences: names of the settings in which they differ.
        leftovers: versions that an ended reindex has left; they go first.
        recall_min, grace_s, last_readers_s: see `ReindexSettings`.
    """

    old: IndexVersion
    wanted: IndexVersion
    differences: tuple[str, ...]
    leftovers: tuple[int, ...]
    recall_min: float
    grace_s: float
    last_readers_s: float


class VersionOf(Contract):
    """One index version of a pipeline."""

    pipeline: str
    number: int


class Registering(Contract):
    """Register a version; `wanted`: see ReindexPlan."""

    pipeline: str
    wanted: IndexVersion


class WritersLook(VersionOf):
    """Look until something is another than what was `seen` last, or for ten minutes."""

    seen: tuple[str, ...] = ()


class Joined(Contract):
    """Attributes:
    missing: partitions whose changes are not written to the version yet.
    gaps: what the log lacked so far, by reason: when it came up.
    """

    missing: tuple[str, ...]
    gaps: dict[str, str] = Field(default_factory=dict)


class Left(Contract):
    """`writing`: partitions whose changes may still be written to the version."""

    writing: tuple[str, ...]


class GapWatch(VersionOf):
    """`gaps`: as they were when its backfill began; None: they do not matter."""

    gaps: dict[str, str] | None


class Watched(Contract):
    """`gap`: what the log lacked since: the version is not known to be whole; empty: nothing."""

    gap: str = ""


class Activation(VersionOf):
    """`gaps`: see GapWatch. `instead_of`: what readers see until now."""

    instead_of: int
    gaps: dict[str, str] | None


class Activated(Watched):
    """`gap`: then nothing was done. `gaps`: as they were at that moment."""

    gaps: dict[str, str] = Field(default_factory=dict)


class Dropped(Contract):
    """How many keys were removed."""

    keys: int


class Behind(Contract):
    """Documents whose last change the old version has, and the new one has not. `documents`: compared."""

    documents: int = 0
    behind: int = 0
    examples: tuple[str, ...] = ()


class Pair(Contract):
    """The two versions that are compared."""

    pipeline: str
    old: int
    new: int


class Answers(Contract):
    """What both versions answer to one query, nearest first: (document id, distance).

    Attributes:
        query: id of the row whose text was searched for.
        overlap: share of the documents that both answer.
    """

    query: str
    old: tuple[tuple[str, float], ...]
    new: tuple[tuple[str, float], ...]
    overlap: float


class Quality(Contract):
    """How well the new version answers.

    Attributes:
        recall: of the new index against exact search, at NEIGHBOURS; None: it has no vectors to search.
        queries: that were asked.
        vectors: that exact search compared with; `left_out`: more were there than exact_vectors_max.
        overlap: mean share of documents that both versions answer; None: nothing was asked.
        answers: of some queries.
    """

    recall: float | None = None
    queries: int = 0
    vectors: int = 0
    left_out: bool = False
    overlap: float | None = None
    answers: tuple[Answers, ...] = ()


class Gate(Contract):
    """What was measured before readers are given the new version.

    Attributes:
        rows: compared with their documents.
        documents: seen in the new version.
        differences: documents by what is different; must be empty.
        behind: see Behind; must be 0.
        recall_min: what recall must reach.
    """

    rows: int
    documents: int
    differences: dict[str, int]
    examples: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    behind: int = 0
    quality: Quality = Quality()
    recall_min: float = 0.0

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it does not pass; empty: it does."""
        failures = [
            f"{count:,} documents {name.replace('_', ' ')}" for name, count in self.differences.items()
        ]
        if self.behind:
            failures.append(f"{self.behind:,} documents lack a change that the old index has")
        recall = self.quality.recall
        if recall is not None and recall < self.recall_min:
            failures.append(f"recall@{NEIGHBOURS} is {recall:.3f}, and must be {self.recall_min:g}")
        return tuple(failures)

    @property
    def passed(self) -> bool:
        return not self.failures


class ShortParity(Contract):
    """A look at some rows: `rows` of them, `differing` among them by what is different."""

    rows: int
    differing: dict[str, int] = Field(default_factory=dict)


PLANNING, JOINING, BACKFILLING, CHECKING = "planning", "waiting for the daemons", "backfilling", "checking"
APPROVAL, SWAPPING, GRACE, REMOVING = "waiting for approval", "swapping", "grace period", "removing"
TIMEOUT = timedelta(minutes=10)
TIMEOUT_LONG = timedelta(days=2)


class ReindexOrder(PlanOrder):
    """What to make.

    Attributes:
        auto: approve it where the gate passes.
        grace_s: how long the old version is kept; None: as the worker's daemon.toml says.
        rate: most rows a second.
    """

    auto: bool = False
    grace_s: float | None = None
    rate: float | None = None


class Approval(Contract):
    """`force`: though the gate fails."""

    force: bool = False


class Rollback(Contract):
    """`force`: though the old version may lack changes."""

    force: bool = False


class ReindexStatus(Contract):
    """Where a reindex is.

    Attributes:
        old: the version that readers saw at the start.
        new: None: not registered yet.
        gate: what was measured; None: not yet.
        waiting_for: partitions.
        grace_until_s: since the epoch; None: readers were not given the new version yet.
    """

    pipeline: str
    phase: str
    auto: bool
    old: IndexVersion | None = None
    new: IndexVersion | None = None
    gate: Gate | None = None
    waiting_for: tuple[str, ...] = ()
    grace_until_s: float | None = None
    rolled_back: bool = False
    note: str = ""


class Reindexed(Contract):
    """What a reindex came to.

    Attributes:
        outcome: activated, rolled_back or rejected.
        new: the version that was made.
        outcomes: of the backfill's rows.
    """

    pipeline: str
    outcome: str
    old: int
    new: IndexVersion | None
    gate: Gate | None
    rows: int
    outcomes: dict[str, int]
    seconds: float


def workflow_id(pipeline: str) -> str:
    """Return its id: one reindex of a pipeline at a time."""
    return f"reindex-{pipeline}"
