"""The daemon follows the registry of index versions while it runs."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc

from daemon.embedding.triton.embedder import TritonEmbedder
from daemon.index import schema
from daemon.index.connection import Client, connect
from daemon.index.registry import Versions
from daemon.projection.build import document_builder
from deploy.local import artifacts
from deploy.local.home import silent
from tests.support.mirrored_table import DaemonProcess, MirroredTable, wait_until
from tests.workflows.reindexes import tiny_model


@dataclass
class Running:
    table: MirroredTable
    daemon: DaemonProcess
    versions: Versions
    client: Client

    async def register(self, **changes: Any) -> int:
        active = (await self.versions.known()).version()
        return (await self.versions.register(replace(active, **changes))).number

    def documents(self, number: int) -> dict[str, str]:
        keys = list(self.table.redis.scan_iter(match=f"lv:{self.table.name}:{number}:doc:*"))
        found = {key: self.table.redis.hmget(key, "id", "text") for key in keys}
        # One that is deleted between the two reads has neither.
        return {identifier.decode(): text.decode() for identifier, text in found.values() if identifier}

    def count(self, name: str, **labels: str) -> float:
        shown = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        return self.daemon.metrics().get(f"{name}{{{shown}}}", 0.0)


@pytest.fixture
async def running(mirrored: MirroredTable) -> AsyncIterator[Running]:
    async with following(mirrored) as running:
        yield running


@asynccontextmanager
async def following(table: MirroredTable) -> AsyncIterator[Running]:
    table.connect()
    with table.daemon() as daemon:
        client = connect(table.config.redis)
        try:
            yield Running(table, daemon, Versions(client, table.name), client)
        finally:
            await client.aclose()


@contextmanager
def unloadable(table: MirroredTable, model: str) -> Iterator[None]:
    """The model is in Triton's repository, and cannot be loaded."""
    folder = artifacts.ensure(artifacts.default_cache(), silent, kafka=False).models / model
    (folder / "1").rename(folder / "away")
    try:
        with grpc.InferenceServerClient(table.addresses.triton_grpc) as client:
            client.unload_model(model)
            wait_until(lambda: not client.is_model_ready(model))
        yield
    finally:
        (folder / "away").rename(folder / "1")


async def test_a_registered_version_gets_every_change_beside_the_active_one(running: Running) -> None:
    running.table.execute("insert into $T (id, title, body) values (1, 'before', 'it')")
    running.table.wait_equal()
    number = await running.register(m=32, text="{title} / {body}")
    await _joined(running, number)
    running.table.execute("insert into $T (id, title, body) values (2, 'after', 'it')")
    running.table.execute("update $T set title = 'changed' where id = 1")
    wait_until(lambda: running.documents(number) == {"1": "changed / it", "2": "after / it"})
    running.table.wait_equal()
    running.table.execute("delete from $T where id = 2")
    wait_until(lambda: running.documents(number) == {"1": "changed / it"})
    assert await schema.exists(running.client, f"{running.table.name}:{number}")


async def test_a_retired_version_is_left_and_holds_up_no_offset(running: Running) -> None:
    number = await running.register(m=32)
    await _joined(running, number)
    await running.versions.retire(number)
    wait_until(lambda: running.table.redis.hlen(f"lv:{running.table.name}:writers:{number}") == 0)
    running.table.execute("insert into $T (id, title, body) values (1, 'only', 'one')")
    running.table.wait_equal()
    wait_until(lambda: running.table.committed() == running.table.end_offsets())
    assert running.documents(number) == {}


async def test_readers_and_metrics_follow_the_active_version(running: Running) -> None:
    name = running.table.name
    number = await running.register(m=32)
    await _joined(running, number)
    await running.versions.activate(number)
    wait_until(lambda: running.count("livevec_index_version", pipeline=name) == number)
    running.table.execute("insert into $T (id, title, body) values (1, 'both', 'versions')")
    running.table.wait_equal()
    wait_until(lambda: running.count("livevec_changes_total", outcome="embedded", pipeline=name) == 1)
    assert running.count("livevec_changes_total", outcome="embedded", pipeline=f"{name}:1") == 1
    # The alias names the index over that version's documents.
    wait_until(
        lambda: f"lv:{name}:{number}:doc:" in str(running.table.redis.execute_command("FT.INFO", name))
    )


async def test_a_version_that_cannot_be_written_is_given_up_and_the_active_one_goes_on(
    running: Running,
) -> None:
    number = await running.register(model="no_such_model")
    wait_until(lambda: running.table.redis.hexists(f"lv:{running.table.name}:versions", f"failed:{number}"))
    table = await running.versions.known()
    assert "no_such_model" in table.failed[number]
    running.table.execute("insert into $T (id, title, body) values (1, 'goes', 'on')")
    running.table.wait_equal()


async def test_a_version_whose_model_is_away_holds_up_the_offsets_of_all_for_a_while_only(
    mirrored: MirroredTable, tmp_path: Path
) -> None:
    with mirrored.config_path.open("a") as config:
        config.write("\n[retry]\nstuck_version_s_max = 1.0\n")

    def given_up(number: int) -> bool:
        return bool(mirrored.redis.hexists(f"lv:{mirrored.name}:versions", f"failed:{number}"))

    async with following(mirrored) as running:
        with tiny_model(mirrored, tmp_path) as model:
            embedder = TritonEmbedder(mirrored.addresses.triton_grpc, model, dimension=None)
            space = await embedder.start()
            await embedder.close()
            made = {"model": model, "dimension": space.dimension, "fingerprint": space.fingerprint}
            number = await running.register(**made)
            await _joined(running, number)
            mirrored.execute("insert into $T (id, title, body) values (1, 'reaches', 'both')")
            wait_until(lambda: "1" in running.documents(number))
            with unloadable(mirrored, model):
                mirrored.execute("insert into $T (id, title, body) values (2, 'goes', 'on')")
                mirrored.wait_equal()
                assert not given_up(number)
                wait_until(lambda: given_up(number))
                wait_until(lambda: mirrored.committed() == mirrored.end_offsets())
                another = await running.register(**made)
                wait_until(lambda: given_up(another))
            table = await running.versions.known()
            assert model in table.failed[number]
            assert model in table.failed[another]
            mirrored.execute("insert into $T (id, title, body) values (3, 'and', 'on')")
            mirrored.wait_equal()


async def test_a_version_whose_column_the_table_lost_is_given_up_and_the_active_one_goes_on(
    running: Running,
) -> None:
    running.table.execute("alter table $T add column extra text")
    number = await running.register(text="{title} {extra}")
    await _joined(running, number)
    running.table.execute("alter table $T drop column extra")
    running.table.execute("insert into $T (id, title, body) values (1, 'goes', 'on')")
    running.table.wait_equal()
    wait_until(lambda: running.table.redis.hexists(f"lv:{running.table.name}:versions", f"failed:{number}"))
    wait_until(lambda: running.table.committed() == running.table.end_offsets())


async def test_a_registry_that_redis_lost_is_put_back(running: Running) -> None:
    number = await running.register(m=32)
    await _joined(running, number)
    await running.versions.activate(number)
    wait_until(lambda: running.count("livevec_index_version", pipeline=running.table.name) == number)
    before = await running.versions.known()
    running.table.redis.delete(
        f"lv:{running.table.name}:versions", f"lv:positions:{running.table.config.kafka.group_id}:{{0}}"
    )
    running.table.execute("insert into $T (id, title, body) values (1, 'notices', 'it')")
    wait_until(lambda: running.table.redis.exists(f"lv:{running.table.name}:versions"))
    after = await running.versions.known()
    assert (after.active, after.versions) == (before.active, before.versions)


async def _joined(running: Running, number: int) -> None:
    wait_until(lambda: running.table.redis.hlen(f"lv:{running.table.name}:writers:{number}") == 1)


def test_a_version_renders_with_what_it_was_made_with(mirrored: MirroredTable) -> None:
    from daemon.embedding.embedder import EmbeddingSpace
    from daemon.index.registry import wanted

    pipeline = mirrored.config.pipelines[0]
    made = wanted(pipeline, EmbeddingSpace("m", 3, 0, "f"))
    changed = made.pipeline(pipeline.model_copy(update={"text": "{body}"}))
    assert changed.text == pipeline.text
    assert changed.columns == pipeline.columns
    row = {"title": "a", "body": "b", "category": "c", "price": "1"}
    assert document_builder(changed, made).build(row).text == "a: b"
