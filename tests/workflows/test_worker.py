"""The worker: a new build takes over what an older one began, and a lone one works out of the box."""

import asyncio
from pathlib import Path

from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentRequest

from tests.support.mirrored_table import MirroredTable, WorkerProcess
from tests.workflows.backfills import Backfills, insert
from workflows import search_attributes
from workflows.client import connect


def start(table: MirroredTable, build: str) -> WorkerProcess:
    plain = table.config_path.read_text()
    table.config_path.write_text(
        plain.replace("deployment =", f'build_id = "{build}"\n            deployment =')
    )
    try:
        return table.start_worker().wait_ready()
    finally:
        table.config_path.write_text(plain)


async def test_a_new_build_becomes_current_and_takes_over_what_an_older_one_began(
    mirrored: MirroredTable,
) -> None:
    mirrored.connect()
    insert(mirrored, 1, 300)
    with mirrored.daemon():
        mirrored.wait_equal()
    backfills = await Backfills.of(mirrored)
    older = start(mirrored, "older")
    handle = await backfills.start(rate=20.0, slice_s=1.0)
    await backfills.phase(handle, "copying")
    newer = start(mirrored, "newer")
    assert older.terminate() == 0
    await handle.execute_update("throttle", 0.0)
    assert (await handle.result()).rows == 300
    found = (await handle.describe()).raw_description.workflow_execution_info.versioning_info
    assert found.deployment_version.build_id == "newer"
    service = backfills.client.workflow_service
    request = DescribeWorkerDeploymentRequest(
        namespace=backfills.client.namespace, deployment_name=mirrored.name
    )
    described = (await service.describe_worker_deployment(request)).worker_deployment_info
    assert described.routing_config.current_deployment_version.build_id == "newer"
    assert {one.deployment_version.build_id for one in described.version_summaries} == {"older", "newer"}
    assert newer.terminate() == 0


async def test_without_a_deployment_it_works_unversioned(mirrored: MirroredTable) -> None:
    text = mirrored.config_path.read_text().replace(f'deployment = "{mirrored.name}"', 'deployment = ""')
    mirrored.config_path.write_text(text)
    mirrored.connect()
    insert(mirrored, 1, 50)
    with mirrored.daemon(), mirrored.worker():
        done = await (await Backfills.of(mirrored)).run()
        assert done.rows == 50


async def test_search_attributes_are_registered_once(mirrored: MirroredTable) -> None:
    client = await connect(mirrored.config)
    await search_attributes.ensure(client)
    await search_attributes.ensure(client)
    names = [
        one.id async for one in client.list_workflows("LivevecPhase = 'no such' AND LivevecPercent > 100")
    ]
    assert names == []


async def test_it_waits_for_a_temporal_that_is_away(mirrored: MirroredTable, tmp_path: Path) -> None:
    mirrored.stack.kill("temporal")
    worker = mirrored.start_worker().wait_ready()
    assert worker.terminate() == 0
    await asyncio.to_thread(mirrored.stack.addresses)


def test_without_a_worker_a_started_one_waits_and_the_commands_say_so(mirrored: MirroredTable) -> None:
    name = f"backfill-{mirrored.name}"
    assert mirrored.command("backfill", mirrored.name).returncode == 0
    paused = mirrored.command("workflows", "pause", name)
    assert (paused.returncode, "no worker answers" in paused.stderr) == (1, True), paused.stderr
    shown = mirrored.command("workflows", "show", name, "--json")
    assert '"progress": null' in shown.stdout, shown.stderr
    assert mirrored.command("workflows", "cancel", name).returncode == 0
