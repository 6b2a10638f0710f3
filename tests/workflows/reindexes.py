"""Reindexes of one table, started, asked and looked at from a test; readers and edits beside them."""

import asyncio
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import redis.exceptions as redis_errors
import tritonclient.grpc as grpc
from redis import Redis
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle

from daemon.core.vectors import encode
from daemon.index.connection import connect as redis_connect
from daemon.index.registry import IndexVersion, Versions, VersionTable
from daemon.verify.differences import IndexFindings
from daemon.verify.session import opened
from deploy.local import artifacts
from deploy.local.home import silent
from tests.support.mirrored_table import MirroredTable
from tests.support.tiny_model import write_model
from triton_models import build_model, read_source
from workflows.client import connect, start
from workflows.reindex.contract import GRACE, Changes, ReindexOrder, ReindexStatus, workflow_id
from workflows.reindex.workflow import Reindex

DEADLINE_S = 90.0
QUERIES_PER_S = 100
NEAREST = 5
Handle = WorkflowHandle[Any, Any]


class Reindexes:
    """The reindexes of one table."""

    def __init__(self, table: MirroredTable, client: Client) -> None:
        self.table = table
        self.client = client

    @classmethod
    async def of(cls, table: MirroredTable) -> "Reindexes":
        return cls(table, await connect(table.config))

    async def start(
        self, *, auto: bool = True, grace_s: float = 600.0, rate: float | None = None, **changes: Any
    ) -> Handle:
        order = ReindexOrder(
            pipeline=self.table.name, changes=Changes(**changes), auto=auto, grace_s=grace_s, rate=rate
        )
        return await start(
            self.client,
            self.table.config,
            Reindex.run,
            order,
            workflow_id=workflow_id(self.table.name),
            pipeline=self.table.config.pipelines[0],
            summary="a test's",
        )

    async def reached(self, handle: Handle, phase: str) -> ReindexStatus:
        """Poll until it is in that phase."""
        ends_at = time.monotonic() + DEADLINE_S
        while (found := await self.status(handle)).phase != phase:
            if (await handle.describe()).status is not WorkflowExecutionStatus.RUNNING:
                await handle.result()
            if time.monotonic() > ends_at:
                raise AssertionError(f"it does not come to {phase!r}; it is {found}")
            await asyncio.sleep(0.05)
        return found

    async def status(self, handle: Handle) -> ReindexStatus:
        found: ReindexStatus = await handle.query("status", result_type=ReindexStatus)
        return found

    async def swapped(self, **order: Any) -> tuple[Handle, ReindexStatus]:
        """Started, and come to its grace period."""
        handle = await self.start(**order)
        return handle, await self.reached(handle, GRACE)

    async def another(self) -> dict[str, Any]:
        """A change of no matter, but one."""
        return {"m": (await self.versions()).version().m + 1}

    # ---- Redis

    async def versions(self) -> VersionTable:
        client = redis_connect(self.table.config.redis)
        try:
            return await Versions(client, self.table.name).known()
        finally:
            await client.aclose()

    def keys(self, number: int) -> set[bytes]:
        """All of one version."""
        return set(self.table.redis.scan_iter(match=f"lv:{self.table.name}:{number}:*", count=1000))

    def texts(self, number: int) -> dict[str, str]:
        """Of its documents, by id."""
        keys = [key for key in self.keys(number) if b":doc:" in key]
        pipe = self.table.redis.pipeline(transaction=False)
        for key in keys:
            pipe.hmget(key, "id", "text")
        return {one.decode(): text.decode() for one, text in pipe.execute() if one is not None}

    def indexes(self) -> set[str]:
        found = {name.decode() for name in self.table.redis.execute_command("FT._LIST")}
        return {name for name in found if name.startswith(f"{self.table.name}:")}

    def alias(self) -> str:
        info = self.table.redis.ft(self.table.name).info()
        return next(_text(value) for key, value in info.items() if _text(key) == "index_name")

    async def check(self, number: int, *, vectors: bool = True) -> IndexFindings:
        """What `livevec verify` finds of one version."""
        pipeline = self.table.config.pipelines[0]
        async with opened(self.table.config, pipeline, vectors=vectors, version=number) as session:
            return await session.check(lambda *_: None)


def insert_words(table: MirroredTable, first: int, last: int) -> None:
    """Rows of words that the tiny model knows; each tenth has no category."""
    table.execute(
        "insert into $T select n, 'w' || mod(n, 40) || ' w' || mod(n / 40, 40),"
        " 'w' || mod(n * 7, 40) || ' w' || mod(n * 11, 40) || ' w' || mod(n * 13, 37),"
        f" case when mod(n, 10) > 0 then 'w' || mod(n, 7) end, n / 4.0 from generate_series({first}, {last}) n"
    )


@contextmanager
def beside(work: Any) -> Iterator[None]:
    """Run `work(stop)` in a thread meanwhile; its failure is the test's."""
    stop, failures = threading.Event(), list[BaseException]()

    def guarded() -> None:
        try:
            work(stop)
        except BaseException as error:  # noqa: BLE001 - told to the test below
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failures == []


@contextmanager
def editing(table: MirroredTable, first: int, last: int) -> Iterator[None]:
    """Inserts, updates and deletes of the rows of a range, meanwhile: about fifty a second."""

    def edit(stop: threading.Event) -> None:
        with psycopg.connect(table.addresses.postgres_dsn, autocommit=True) as db:
            number = 0
            while not stop.wait(0.02):
                number += 1
                key = first + number * 37 % (last - first + 1)
                if number % 4 == 0:
                    db.execute(f"delete from {table.name} where id = {key}")
                else:
                    db.execute(
                        f"insert into {table.name} values ({key}, 'w1', 'w2 w{number % 40}', 'w3', 1)"
                        " on conflict (id) do update set body = excluded.body"
                    )

    with beside(edit):
        yield


@dataclass
class Readers:
    """Queries at a steady rate, of rows that nobody edits, each by id and by nearness.

    Attributes:
        seen: the index version that answered each query, in their order.
        failed: what a reader saw that it must not.
    """

    table: MirroredTable
    ids: list[int]
    seen: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def by_alias(self, stop: threading.Event) -> None:
        """As an application does that knows one model."""
        self._ask(stop, None)

    def by_registry(self, stop: threading.Event) -> None:
        """As an application does that follows the model: the active version's own index."""
        self._ask(stop, f"lv:{self.table.name}:versions")

    def swaps(self) -> list[int]:
        """The versions that were seen, each as long as it was."""
        return [now for before, now in zip([None, *self.seen], self.seen, strict=False) if now != before]

    def _ask(self, stop: threading.Event, registry: str | None) -> None:
        client: Any = Redis.from_url(self.table.addresses.redis_url, protocol=2)
        random = np.random.default_rng(1)
        records: dict[int, IndexVersion] = {}
        while not stop.wait(1 / QUERIES_PER_S):
            index, dimension, kind = self.table.name, 384, "FLOAT32"
            if registry is not None:
                active, settings = client.hget(registry, "active"), client.hgetall(registry)
                assert active is not None
                version = records.setdefault(int(active), IndexVersion.decode(settings[active]))
                index, dimension, kind = f"{index}:{version.number}", version.dimension, version.type
            query = encode(random.normal(size=(1, dimension)).astype(np.float32), kind)[0]
            wanted = int(random.choice(self.ids))
            nearest = f"=>[KNN {NEAREST} @embedding $v]"
            for text, least in ((f"(@id:{{{wanted}}}){nearest}", 1), (f"*{nearest}", NEAREST)):
                try:
                    found = client.execute_command(
                        *("FT.SEARCH", index, text, "NOCONTENT", "PARAMS", 2, "v", query, "DIALECT", 2)
                    )
                except redis_errors.RedisError as error:
                    self.failed.append(f"{text}: {error}")
                    continue
                if len(found) - 1 < least:
                    self.failed.append(f"{text}: {len(found) - 1} answers")
                numbers = {int(key.decode().split(":")[2]) for key in found[1:]}
                if len(numbers) > 1:
                    self.failed.append(f"{text}: answers of {numbers}")
                self.seen += numbers
        client.close()


@contextmanager
def tiny_model(table: MirroredTable, folder: Path) -> Iterator[str]:
    """A model of another dimension in the stack's Triton; answers its name."""
    name = f"tiny_{uuid.uuid4().hex[:8]}"
    repository = artifacts.ensure(artifacts.default_cache(), silent, kafka=False).models
    built = build_model(read_source(write_model(folder / "tiny")), repository, name=name)
    try:
        with grpc.InferenceServerClient(table.addresses.triton_grpc) as client:
            client.load_model(name)
            try:
                yield name
            finally:
                client.unload_model(name)
    finally:
        for path in built.folders:
            shutil.rmtree(path)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
