"""Reconciles of one table, started and looked at from a test; and changes beside them."""

import asyncio
import random
import threading
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from temporalio.client import WorkflowHandle

from daemon.verify.differences import Difference
from daemon.verify.session import opened
from tests.support.mirrored_table import MirroredTable
from workflows.client import connect, start
from workflows.reconcile.contract import Reconciled, Subject
from workflows.reconcile.workflow import Reconcile, ReconcileOrder

LAG_S = 1.0
"""Long enough for nothing to be on its way: no daemon runs, or it is idle."""


def subject(table: MirroredTable, **settings: Any) -> Subject:
    return Subject(**{"pipeline": table.name, "lag_s": LAG_S, "rows_per_range": 500, **settings})


async def started(table: MirroredTable, order: ReconcileOrder) -> WorkflowHandle[Any, Reconciled]:
    return await start(
        await connect(table.config),
        table.config,
        Reconcile.run,
        order,
        workflow_id=f"reconcile-{table.name}-{uuid.uuid4().hex[:8]}",
        pipeline=table.config.pipelines[0],
        summary="a test's",
    )


async def reconciled(table: MirroredTable, **settings: Any) -> Reconciled:
    handle = await started(table, ReconcileOrder(subject=subject(table, **settings)))
    return await handle.result()


async def differences(table: MirroredTable) -> dict[str, frozenset[Difference]]:
    """What another check, whole and with vectors, finds."""
    async with opened(table.config, table.config.pipelines[0], vectors=True) as session:
        return dict((await session.check(lambda *_: None)).differing)


async def eventually(condition: Callable[[], Awaitable[Any]], deadline_s: float = 60.0) -> Any:
    ends_at = asyncio.get_running_loop().time() + deadline_s
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < ends_at, f"not within {deadline_s} s: {condition}"
        await asyncio.sleep(0.05)
    return found


@contextmanager
def edited(table: MirroredTable, keys: int, per_s: int) -> Iterator[Counter[str]]:
    """Random inserts, updates and deletes of so many keys meanwhile."""
    stop, done, random_ = threading.Event(), Counter[str](), random.Random(7)

    def edit() -> None:
        while not stop.wait(1 / per_s):
            key, number = random_.randrange(1, keys + 1), sum(done.values())
            if random_.random() < 0.3:
                table.execute("delete from $T where id = %s", key)
                done["delete"] += 1
            else:
                table.execute(
                    "insert into $T values (%s, 't', %s, 'c', %s) on conflict (id) do update set body = excluded.body,"
                    " price = excluded.price",
                    key,
                    f"edit {number % 50}",
                    number % 5,
                )
                done["upsert"] += 1

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        yield done
    finally:
        stop.set()
        editor.join()
