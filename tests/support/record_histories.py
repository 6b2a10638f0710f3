"""Records the histories that the replay tests replay: `python -m tests.support.record_histories [SCENARIO ...]`.

Starts the real servers. Keep the files of earlier builds: what they began must be able to go on.
"""

import asyncio
import json
import re
import sys
import tempfile
from pathlib import Path

from tests.support.mirrored_table import MirroredTable
from tests.support.stack_fixture import running_stack, throwaway_home
from tests.workflows.recordings import RECORDINGS, Recording
from workflows.client import connect

FOLDER = Path(__file__).parents[1] / "workflows" / "histories"


def main() -> None:
    wanted = set(sys.argv[1:])
    FOLDER.mkdir(exist_ok=True)
    with throwaway_home() as home, running_stack(home) as stack, tempfile.TemporaryDirectory() as folder:
        for recording in RECORDINGS:
            if wanted and recording.__name__ not in wanted:
                continue
            table = MirroredTable(stack, Path(folder))
            try:
                table.connect()
                with table.daemon(), table.worker():
                    asyncio.run(_record(table, recording))
            finally:
                table.close()


async def _record(table: MirroredTable, recording: Recording) -> None:
    client = await connect(table.config)
    for name, run in (await recording(table)).items():
        workflow_id, _, run_id = run.partition("/")
        history = await client.get_workflow_handle(workflow_id, run_id=run_id or None).fetch_history()
        # Which machine recorded it is no part of it.
        text = re.sub(r'"identity": "[^"]*"', '"identity": "recorded"', history.to_json())
        (FOLDER / f"{name}.json").write_text(json.dumps(json.loads(text), indent=1) + "\n")
        print(f"{name}: {len(history.events)} events")


if __name__ == "__main__":
    main()
