"""Redis that is full, that is read-only, and that goes back in time."""

import pytest

from daemon.index.layout import Layout
from tests.chaos.random_load import random_load
from tests.support.mirrored_table import MirroredTable, wait_until


@pytest.fixture
def running(mirrored: MirroredTable) -> MirroredTable:
    """The connector streams."""
    mirrored.connect()
    return mirrored


def test_redis_out_of_memory_is_waited_for_and_nothing_is_dropped(running: MirroredTable) -> None:
    redis = running.redis
    with running.daemon() as daemon:
        running.execute(
            "insert into $T select n, 'title ' || n, 'body', 'a', n from generate_series(1, 50) n"
        )
        running.wait_equal()
        redis.config_set("maxmemory", 1_000_000)
        try:
            running.execute(
                "insert into $T select n, 'title ' || n, 'body', 'a', n from generate_series(51, 150) n"
            )
            part = wait_until(
                lambda: (state := daemon.get("/status.json")["parts"]["redis"]) and not state["up"] and state
            )
            assert "out of memory" in part["message"]
            running.execute("delete from $T where id = 1")
        finally:
            redis.config_set("maxmemory", 0)
        assert len(running.wait_equal()) == 149
        assert daemon.outcomes().get("dead_lettered", 0) == 0


def test_a_read_only_redis_is_waited_for(running: MirroredTable) -> None:
    redis = running.redis
    with running.daemon() as daemon:
        running.execute("insert into $T values (1, 'a', 'b', 'c', 1)")
        running.wait_equal()
        # Refuses writes as a replica's primary does that has lost its replicas.
        redis.config_set("min-replicas-to-write", 1)
        try:
            running.execute("insert into $T values (2, 'a', 'b', 'c', 1)")
            wait_until(lambda: not daemon.get("/status.json")["parts"]["redis"]["up"])
        finally:
            redis.config_set("min-replicas-to-write", 0)
        assert len(running.wait_equal()) == 2


def test_a_restored_dump_is_noticed_and_what_came_after_it_is_read_again(running: MirroredTable) -> None:
    redis, name = running.redis, running.name
    with running.daemon() as daemon:
        with random_load(running, truncates=False) as load:
            wait_until(lambda: load.statements > 100)
            dump = {key: redis.dump(key) for key in redis.scan_iter(match=f"lv:*{name}*", count=1000)}
            before = load.statements
            wait_until(lambda: load.statements > before + 200)
            pipe = redis.pipeline()
            for key in redis.scan_iter(match=f"lv:*{name}*", count=1000):
                pipe.delete(key)
            for key, value in dump.items():
                if value is not None:
                    pipe.restore(key, 0, value)
            pipe.execute()
            before = load.statements
            wait_until(lambda: load.statements > before + 100)
        running.wait_equal(120)
        assert daemon.metrics()["livevec_redis_went_back_total"] >= 1
        assert running.command("verify", "--json").returncode == 0


def test_an_index_that_vanished_is_made_again(running: MirroredTable) -> None:
    with running.daemon():
        running.execute(
            "insert into $T select n, 'title ' || n, 'body', 'a', n from generate_series(1, 50) n"
        )
        running.wait_equal()
        running.redis.execute_command("FT.DROPINDEX", Layout(running.name, 1).index)
        wait_until(lambda: running.command("search", running.name, "title", "--json").returncode == 0)
        wait_until(lambda: running.command("verify", "--json").returncode == 0)
