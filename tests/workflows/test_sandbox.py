"""Every workflow there is loads inside Temporal's sandbox, is registered, and can be asked how far it is."""

import importlib
import inspect
import pkgutil

import pytest
from temporalio import workflow
from temporalio.worker.workflow_sandbox import RestrictedWorkflowAccessError

import workflows
from tests.workflows.unfit import ThrowsDice
from workflows.registry import WORKFLOWS, sandbox


def definition(kind: type) -> "workflow._Definition":
    return workflow._Definition.must_from_class(kind)


def test_every_workflow_of_the_package_is_registered() -> None:
    found = set()
    for module in pkgutil.walk_packages(workflows.__path__, "workflows."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if workflow._Definition.from_class(kind) is not None:
                found.add(kind)
    assert found == set(WORKFLOWS)


@pytest.mark.parametrize("kind", WORKFLOWS, ids=lambda kind: kind.__name__)
async def test_a_workflow_loads_inside_the_sandbox(kind: type) -> None:
    sandbox().prepare_workflow(definition(kind))


async def test_a_workflow_that_throws_dice_does_not_load() -> None:
    with pytest.raises(RestrictedWorkflowAccessError):
        sandbox().prepare_workflow(definition(ThrowsDice))


@pytest.mark.parametrize("kind", WORKFLOWS, ids=lambda kind: kind.__name__)
def test_a_workflow_answers_how_far_it_is_and_can_be_held(kind: type) -> None:
    assert {"progress"} <= definition(kind).queries.keys()
    assert {"pause", "resume", "throttle"} <= definition(kind).updates.keys() & definition(
        kind
    ).signals.keys()
