"""What runs now must be able to go on with what was begun by an earlier build: every recorded history replays.

`python -m tests.support.record_histories` records them anew from real servers; keep the old files beside the new ones.
"""

import json
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from tests.workflows.otherwise import Otherwise
from workflows.registry import WORKFLOWS, sandbox

FOLDER = Path(__file__).parent / "histories"
HISTORIES = sorted(FOLDER.glob("*.json"))
TEXTS = {history: history.read_text() for history in HISTORIES}


def workflow_type(history: Path) -> str:
    started = json.loads(TEXTS[history])["events"][0]["workflowExecutionStartedEventAttributes"]
    return str(started["workflowType"]["name"])


async def replay(name: str, text: str, *kinds: type) -> None:
    replayer = Replayer(workflows=kinds, data_converter=pydantic_data_converter, workflow_runner=sandbox())
    await replayer.replay_workflow(WorkflowHistory.from_json(name, text))


@pytest.mark.parametrize("history", HISTORIES, ids=lambda path: path.stem)
async def test_a_recorded_history_replays(history: Path) -> None:
    await replay(history.stem, TEXTS[history], *WORKFLOWS)


def test_every_workflow_has_a_history() -> None:
    recorded = {workflow_type(history) for history in HISTORIES}
    assert recorded == {workflow._Definition.must_from_class(kind).name for kind in WORKFLOWS}


async def test_a_workflow_that_decides_otherwise_does_not_replay() -> None:
    history = next(one for one in HISTORIES if workflow_type(one) == "Backfill")
    with pytest.raises(NondeterminismError):
        await replay(history.stem, TEXTS[history], Otherwise)
