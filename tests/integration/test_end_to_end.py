"""A row from PostgreSQL to a KNN search, through every real part."""

import random
import signal
import time

import numpy as np
import numpy.typing as npt
import pytest
from redis import Redis
from redis.commands.search.query import Query

from tests.support.bert_reference import BertReference
from tests.support.mirrored_table import MirroredTable, wait_until
from triton_models.build import packaged_weights

SENTENCES = [
    "a small domesticated feline that purrs",
    "the central bank raised its interest rates again",
    "photosynthesis turns light into chemical energy",
    "the goalkeeper saved a penalty in the last minute",
    "a stringed instrument played with a bow",
]


@pytest.fixture(scope="module")
def reference() -> BertReference:
    return BertReference(packaged_weights(), heads=12, max_tokens=256)


def knn(redis: Redis, alias: str, vector: npt.NDArray[np.float32], k: int = 1) -> list[str]:
    """The texts that an ordinary client finds."""
    query = Query(f"*=>[KNN {k} @embedding $v AS d]").sort_by("d").return_fields("text").dialect(2)
    found = redis.ft(alias).search(query, query_params={"v": vector.astype(np.float32).tobytes()})
    return [document.text for document in found.docs]


def test_a_committed_row_is_found_by_its_meaning_and_a_deleted_one_is_not(
    mirrored_alone: MirroredTable, reference: BertReference
) -> None:
    mirrored = mirrored_alone  # whose connector begins with a snapshot
    mirrored.execute("insert into $T values (1, 'before', 'a row from before the connector', 'old', 1)")
    mirrored.connect()
    reader = Redis.from_url(mirrored.addresses.redis_url, protocol=2)
    with mirrored.daemon() as daemon:
        for number, sentence in enumerate(SENTENCES, 2):
            mirrored.execute("insert into $T values (%s, 'note', %s, 'new', 2.50)", number, sentence)
        table = mirrored.wait_equal()
        assert len(table) == 6

        # The vectors are the model's, by an implementation that shares no code with what is served.
        for key, vector in mirrored.vectors().items():
            assert float(vector @ reference.embed([table[key][0]])[0]) >= 0.999

        question = reference.embed(["pets that meow"])[0]
        assert knn(reader, mirrored.name, question)[0] == f"note: {SENTENCES[0]}"

        mirrored.execute("update $T set body = 'quarterly earnings of a car maker' where id = 2")
        wait_until(lambda: "car maker" in mirrored.indexed()["2"][0])
        assert "feline" not in str(knn(reader, mirrored.name, question, 10))

        mirrored.execute("delete from $T where id = 2")
        mirrored.execute("update $T set id = 100 where id = 3")
        mirrored.execute("update $T set price = null, category = 'changed' where id = 4")
        table = mirrored.wait_equal()
        assert "2" not in table
        assert "100" in table
        assert {"embedded", "deleted", "metadata", "ignored"} <= daemon.outcomes().keys()
        metrics = daemon.metrics()
        read = metrics[f'livevec_changes_read_total{{pipeline="{mirrored.name}"}}']
        assert wait_until(lambda: sum(daemon.outcomes().values()) == read)
        assert metrics["livevec_commit_to_searchable_seconds_count" + f'{{pipeline="{mirrored.name}"}}'] >= 6


def test_random_edits_while_running_end_in_an_equal_index(mirrored: MirroredTable) -> None:
    seed = 20
    rnd = random.Random(seed)
    mirrored.connect()
    with mirrored.daemon() as daemon:
        rows = [(n, f"title {n}", rnd.choice(SENTENCES), rnd.choice("abc"), n) for n in range(1_500)]
        with mirrored.db.cursor().copy(f"copy {mirrored.name} from stdin") as copy:
            for row in rows:
                copy.write_row(row)
        for _ in range(1_000):
            _edit(mirrored, rnd)
        table = mirrored.wait_equal(180)
        assert len(table) > 1_000
        verify = mirrored.command("verify", "--json")
        assert verify.returncode == 0, verify.stdout
        read = daemon.metrics()[f'livevec_changes_read_total{{pipeline="{mirrored.name}"}}']
        assert wait_until(lambda: sum(daemon.outcomes().values()) == read), daemon.outcomes()


def _edit(mirrored: MirroredTable, rnd: random.Random) -> None:
    key = rnd.randrange(600)
    match rnd.randrange(6):
        case 0:
            mirrored.execute("delete from $T where id = %s", key)
        case 1:
            mirrored.execute("update $T set price = %s where id = %s", rnd.randrange(100), key)
        case 2:
            mirrored.execute("update $T set id = %s where id = %s", rnd.randrange(10_000, 1_000_000), key)
        case 3:
            mirrored.execute("update $T set title = title where id between %s and %s", key, key + 5)
        case _:
            mirrored.execute(
                "insert into $T values (%s, %s, %s, 'x', 1) on conflict (id) do update set "
                "title = excluded.title, body = excluded.body",
                key,
                f"edited {rnd.random()}",
                rnd.choice(SENTENCES),
            )


def test_a_daemon_killed_again_and_again_loses_nothing(mirrored: MirroredTable) -> None:
    rnd = random.Random(21)
    mirrored.connect()
    mirrored.execute(
        "insert into $T select n, 'title ' || n, 'body of ' || n, 'a', n from generate_series(0, 599) n"
    )
    daemon = mirrored.start_daemon().wait_ready()
    for _ in range(4):
        time.sleep(rnd.uniform(0.0, 0.8))  # the moment of the kill is what varies
        daemon.kill()
        for _ in range(30):
            _edit(mirrored, rnd)
        daemon = mirrored.start_daemon()
        for _ in range(30):
            _edit(mirrored, rnd)
        daemon.wait_ready()
    mirrored.wait_equal(120)


def test_a_stopped_daemon_has_drained_and_committed_all_that_it_read(mirrored: MirroredTable) -> None:
    mirrored.connect()
    mirrored.execute(
        "insert into $T select n, 'title ' || n, 'body of ' || n, 'a', n from generate_series(1, 500) n"
    )
    with mirrored.daemon() as daemon:
        mirrored.wait_equal()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(30) == 0
    assert mirrored.committed() == mirrored.end_offsets()
    with mirrored.daemon() as second:
        mirrored.execute("insert into $T values (501, 'a', 'b', 'c', 1)")
        mirrored.wait_equal()
        assert second.outcomes() == {"embedded": 1.0}
