"""Worker deployment versioning says which build of the worker runs which workflow.

Workflows here are auto-upgraded: they go on, from their next decision, on the build that is current. For a workflow
that runs for hours and is continued as new this is what a lone worker needs: after an upgrade in place no process of
the old build is left that a pinned run could go on with. The price is that a new build must be able to replay the
histories of the old one; tests/workflows/histories hold it to that.
"""

import asyncio
import hashlib
from importlib.metadata import version
from pathlib import Path

import structlog
from temporalio.api.workflowservice.v1 import SetWorkerDeploymentCurrentVersionRequest
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

from daemon.errors import WorkflowError
from daemon.settings import WorkerSettings

log = structlog.get_logger(__name__)
DECIDING = (
    "backfill/contract.py",
    "backfill/workflow.py",
    "control.py",
    "failures.py",
    "progress.py",
    "reconcile/contract.py",
    "reconcile/workflow.py",
    "reindex/contract.py",
    "reindex/control.py",
    "reindex/workflow.py",
    "retry/contract.py",
    "retry/queue.py",
    "retry/workflow.py",
)
"""What a workflow's decisions come from: its code and the values it decides on, not what activities do with them."""
_PASSING = (
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.RESOURCE_EXHAUSTED,
    RPCStatusCode.DEADLINE_EXCEEDED,
)
_POLL_S = 0.2
_PATIENCE_S = 60.0


def build_id(settings: WorkerSettings) -> str:
    """Return the configured id, else the package's version and a hash of what decides."""
    if settings.build_id:
        return settings.build_id
    digest = hashlib.sha256()
    for name in DECIDING:
        digest.update(name.encode() + b"\0" + (Path(__file__).parent / name).read_bytes())
    return f"{version('livevec')}+{digest.hexdigest()[:10]}"


def deployment(settings: WorkerSettings) -> WorkerDeploymentConfig | None:
    """Return the worker's deployment; None: it is not versioned."""
    if not settings.deployment:
        return None
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(settings.deployment, build_id(settings)),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
    )


async def make_current(client: Client, version: WorkerDeploymentVersion) -> None:
    """Let workflows run on this build; wait until Temporal has heard of it, by the worker's first poll.

    It raises WorkflowError where Temporal refuses.
    """
    request = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace,
        deployment_name=version.deployment_name,
        build_id=version.build_id,
        identity=client.identity,
        ignore_missing_task_queues=True,
    )
    ends_at = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            await client.workflow_service.set_worker_deployment_current_version(request)
        except RPCError as error:
            if error.status not in _PASSING or asyncio.get_running_loop().time() > ends_at:
                raise WorkflowError(
                    f"Temporal does not make build {version.build_id!r} of {version.deployment_name!r} current "
                    f'({error.message}); workflows wait until one is: set temporal.worker.deployment to "" where '
                    "the server is older than 1.28, or become_current to false where something else decides"
                ) from error
            await asyncio.sleep(_POLL_S)
        else:
            log.info("build_is_current", deployment=version.deployment_name, build_id=version.build_id)
            return
