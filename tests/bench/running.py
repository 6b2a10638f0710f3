"""What the measurements share on a running stack: a daemon that can be looked into, and the count of lost changes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from daemon.cli.bench.steps import Bench, Livevec, livevec_running
from daemon.cli.console import Steps
from daemon.core.change import Outcome
from daemon.errors import LivevecError
from daemon.settings import Config
from tests.bench.stored import differences, stored_texts

SENTENCES = 20_000
"""Different texts for a measurement that makes its own rows of them."""
_SETTLE_TIMEOUT_S = 15.0
_SETTLE_POLL_S = 0.5


class ObservedLivevec(Livevec):
    """The daemon as a measured system, with its memory, its queue and the changes that changed nothing."""

    def unchanged(self) -> int:
        """Return how many changes that changed nothing were handled since it started."""
        self.child.check()
        families = text_string_to_metric_families(httpx.get(f"{self.child.http.url}/metrics").text)
        return sum(
            int(sample.value)
            for family in families
            for sample in family.samples
            if sample.name == "livevec_changes_total"
            and sample.labels["pipeline"] == self.pipeline
            and sample.labels["outcome"] == Outcome.UNCHANGED
        )

    def queued(self) -> int:
        """Return how many changes wait in its queue."""
        self.child.check()
        return int(self.child.http.gauges("livevec_queue_changes")[self.pipeline])

    def rss_mb(self) -> float:
        return rss_mb(self.child.process.pid)


@contextmanager
def observed(bench: Bench, steps: Steps, config: Config | None = None) -> Iterator[ObservedLivevec]:
    """A running daemon; the arguments are those of `livevec_running`."""
    with livevec_running(bench, steps, config) as livevec:
        yield ObservedLivevec(livevec.pipeline, livevec.table, livevec.child)


def rss_mb(pid: int) -> float:
    """Return the resident set size of a process, in millions of bytes.

    Raises:
        LivevecError: there is no such process.
    """
    try:
        return round(psutil.Process(pid).memory_info().rss / 1e6, 1)
    except psutil.NoSuchProcess as error:
        raise LivevecError(f"process {pid} has ended") from error


def lost(config: Config, livevec: Livevec) -> int:
    """Return how many changes the index does not know: it is compared with the table until both are equal.

    Raises:
        LivevecError: PostgreSQL or Redis refused.
    """
    ends_at_s = time.monotonic() + _SETTLE_TIMEOUT_S
    url = config.redis.url.get_secret_value()
    while True:
        rows = livevec.table.execute(f"SELECT id, body FROM {livevec.table.name}").fetchall()
        expected = {str(identifier): str(body) for identifier, body in rows}
        unknown = differences(expected, stored_texts(url, livevec.pipeline)).lost
        if not unknown or time.monotonic() > ends_at_s:
            return unknown
        time.sleep(_SETTLE_POLL_S)
