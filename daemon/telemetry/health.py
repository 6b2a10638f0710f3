"""The health of the parts: which of them answer and since when, for /readyz, `livevec status` and the log."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from daemon.errors import FailureClass
from daemon.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PartState:
    """The state of one part; `message` is empty while it answers."""

    up: bool
    message: str
    since_s: float


class Health:
    """Collects what the pipelines learn about the parts as they use them.

    The event loop writes it and the telemetry server's threads read it, so `parts` is replaced, never changed.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.parts: Mapping[str, PartState] = {}
        self.stopped_pipelines: dict[str, str] = {}
        self.assigned = False
        self.alive_at_s = time.monotonic()

    def up(self, part: str) -> None:
        state = self.parts.get(part)
        if state is None or not state.up:
            if state is not None:
                log.info("part_recovered", part=part, down_s=round(time.time() - state.since_s, 3))
            self._set(part, True, "")

    def down(self, part: str, error: FailureClass) -> None:
        self._metrics.failures.labels(part, type(error).__name__).inc()
        state = self.parts.get(part)
        if state is None or state.up:
            log.warning("part_failing", part=part, failure=type(error).__name__, error=str(error))
            self._set(part, False, str(error))

    def _set(self, part: str, up: bool, message: str) -> None:
        self.parts = {**self.parts, part: PartState(up, message, time.time())}
        self._metrics.part_up.labels(part).set(up)

    @property
    def ready(self) -> bool:
        return self.assigned and all(part.up for part in self.parts.values()) and not self.stopped_pipelines
