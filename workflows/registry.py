"""Every workflow and activity there is: a new one is a line here. The worker and the replay tests read it."""

from collections.abc import Callable
from typing import Any

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from workflows.backfill.activities import BackfillActivities
from workflows.backfill.workflow import Backfill
from workflows.reconcile.activities import ReconcileActivities
from workflows.reconcile.workflow import Reconcile
from workflows.reindex.activities import ReindexActivities
from workflows.reindex.gate import ReindexGateActivities
from workflows.reindex.workflow import Reindex
from workflows.resources import Resources
from workflows.retry.activities import RetryActivities
from workflows.retry.workflow import Retry

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
    "workflows.failures",
    "workflows.progress",
    "workflows.search_attributes",
    "workflows.reindex.gate",
    *(
        f"workflows.{folder}.{part}"
        for folder in ("backfill", "reconcile", "reindex", "retry")
        for part in ("contract", "activities")
    ),
)
"""Values and activities only: the workflows themselves, and `control`, are loaded inside the sandbox."""


def activities(resources: Resources) -> list[Callable[..., Any]]:
    """Return the activities, bound to what they share."""
    instances = [kind(resources) for kind in ACTIVITIES]
    methods = [getattr(instance, name) for instance in instances for name in dir(type(instance))]
    return [method for method in methods if hasattr(method, "__temporal_activity_definition")]


def sandbox() -> SandboxedWorkflowRunner:
    """Return what runs workflow code, in the worker and in the replay tests alike."""
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules(*_PASSED_THROUGH)
    )
