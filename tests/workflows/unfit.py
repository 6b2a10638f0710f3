"""A workflow that must not load: proves that the sandbox test can fail."""

import secrets

from temporalio import workflow

LUCK = secrets.token_hex(4)


@workflow.defn(name="ThrowsDice")
class ThrowsDice:
    @workflow.run
    async def run(self) -> str:
        return LUCK
