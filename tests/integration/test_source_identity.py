"""A source that lost history is noticed; a newer era wins over whatever was read of the old one."""

import json

from tests.support.mirrored_table import MirroredTable, wait_until


def test_another_database_under_the_same_name_stops_the_daemon_until_its_era_is_raised(
    mirrored_alone: MirroredTable,
) -> None:
    identity = f"lv:source:{mirrored_alone.name}:identity"
    mirrored_alone.connect()
    with mirrored_alone.daemon():
        mirrored_alone.execute("insert into $T values (1, 'a', 'b', 'c', 1)")
        mirrored_alone.wait_equal()
        seen = wait_until(lambda: mirrored_alone.redis.get(identity))
    # As if the log had been read from another timeline before.
    before = json.loads(seen) | {"timeline": 0}
    mirrored_alone.redis.set(identity, json.dumps(before))
    refused = mirrored_alone.start_daemon()
    assert refused.process.wait(60) != 0
    assert "`era` to 1" in refused.log.read_text()

    text = mirrored_alone.config_path.read_text()
    mirrored_alone.config_path.write_text(text.replace("[[pipelines]]", "era = 1\n            [[pipelines]]"))
    # What the index holds is of the old history: row 1 at a position that the new one may never reach.
    applied = mirrored_alone.command("connector", "apply", "--json")
    assert applied.returncode == 0, applied.stderr
    with mirrored_alone.daemon() as daemon:
        wait_until(
            lambda: b"era_began" in mirrored_alone.redis.hgetall(f"lv:{mirrored_alone.name}:reconcile")
        )
        mirrored_alone.execute("update $T set body = 'in the new era' where id = 1")
        mirrored_alone.wait_equal()
        repaired = mirrored_alone.command("verify", "--repair", "--json")
        assert repaired.returncode == 0, repaired.stdout + repaired.stderr
        assert mirrored_alone.redis.hgetall(f"lv:{mirrored_alone.name}:reconcile") == {}
        assert daemon.process.poll() is None
