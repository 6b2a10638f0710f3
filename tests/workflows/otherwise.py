"""A backfill that decides otherwise than the recorded ones: proves that the replay test can fail."""

import asyncio
from typing import Any

from temporalio import workflow


@workflow.defn(name="Backfill")
class Otherwise:
    @workflow.run
    async def run(self, _: Any) -> None:
        await asyncio.sleep(1)
