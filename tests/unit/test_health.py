"""What the telemetry server's threads read of the health while the event loop writes it."""

import json

from daemon.errors import RetryLater
from daemon.telemetry.health import Health
from daemon.telemetry.http import TelemetryServer
from daemon.telemetry.metrics import Metrics


def test_parts_that_are_being_read_do_not_change() -> None:
    health = Health(Metrics())
    health.up("kafka")
    parts = iter(health.parts.items())
    health.up("redis")
    health.down("kafka", RetryLater("the broker is away"))
    assert [(name, state.up) for name, state in parts] == [("kafka", True)]
    assert {name: state.up for name, state in health.parts.items()} == {"kafka": False, "redis": True}


def test_the_status_is_answered_while_a_part_is_seen_for_the_first_time() -> None:
    class SeenMeanwhile(Health):
        """Sees another part whenever its readiness is asked for."""

        @property
        def ready(self) -> bool:
            for _ in self.parts.values():
                self.up(f"part-{len(self.parts)}")
            return True

    health = SeenMeanwhile(Metrics())
    health.up("kafka")
    server = TelemetryServer("127.0.0.1:0", Metrics(), health)
    try:
        status, _, body = server._answer("/status.json", "")
    finally:
        server._server.server_close()
    assert status == "200 OK"
    assert json.loads(body)["parts"].keys() == {"kafka", "part-1"}
