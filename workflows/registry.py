"""Every workflow and activity there is: a new one is a line here. The worker and the replay tests read it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from workflows.activities.backfill import BackfillActivities
from workflows.activities.reconcile import ReconcileActivities
from workflows.activities.reindex import ReindexActivities
from workflows.activities.reindex_gate import ReindexGateActivities
from workflows.activities.retry import RetryActivities
from workflows.backfill import Backfill
from workflows.reconcile import Reconcile
from workflows.reindex import Reindex
from workflows.retry import Retry

if TYPE_CHECKING:
    from workflows.resources import Resources

WORKFLOWS: tuple[type, ...] = (Backfill, Retry, Reconcile, Reindex)
ACTIVITIES: tuple[type, ...] = (
    BackfillActivities,
    RetryActivities,
    ReconcileActivities,
    ReindexActivities,
    ReindexGateActivities,
)
"""Classes that take the worker's `Resources`; their methods that are activities are found by their decorator."""

_PASSED_THROUGH = (
    "daemon",
    "workflows.activities",
    "workflows.failures",
    "workflows.progress",
    "workflows.search_attributes",
)
"""Values and activities only: the workflows themselves, and `control`, are loaded inside the sandbox."""


def activities(resources: "Resources") -> list[Callable[..., Any]]:
    """The activities, bound to what they share."""
    found = []
    for kind in ACTIVITIES:
        instance = kind(resources)
        for name in dir(kind):
            method = getattr(instance, name)
            if callable(method) and hasattr(method, "__temporal_activity_definition"):
                found.append(method)
    return found


def sandbox() -> SandboxedWorkflowRunner:
    """What runs workflow code, in the worker and in the replay tests alike."""
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules(*_PASSED_THROUGH)
    )
