"""What the reindex workflow is ordered, tells and answers."""

from datetime import timedelta

from daemon.index.versions import IndexVersion
from workflows.activities.reindex_model import Changes, Gate
from workflows.progress import Contract

PLANNING, JOINING, BACKFILLING, CHECKING = "planning", "waiting for the daemons", "backfilling", "checking"
APPROVAL, SWAPPING, GRACE, REMOVING = "waiting for approval", "swapping", "grace period", "removing"
TIMEOUT = timedelta(minutes=10)
TIMEOUT_LONG = timedelta(days=2)


class ReindexOrder(Contract):
    """What to make.

    Attributes:
        auto: approve it where the gate passes.
        force: also where nothing differs.
        grace_s: how long the old version is kept; None: as the worker's daemon.toml says.
        rate: most rows a second.
    """

    pipeline: str
    changes: Changes
    auto: bool = False
    force: bool = False
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
    """One reindex of a pipeline at a time."""
    return f"reindex-{pipeline}"
