"""A client of what a running daemon serves over HTTP: its state, its metrics, its samples of freshness."""

from collections import deque
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S = 2.0


class DaemonHttp:
    """A client of the daemon's telemetry server at `host:port`; where it does not answer, httpx.HTTPError is raised."""

    def __init__(self, address: str, timeout_s: float = _TIMEOUT_S) -> None:
        host, _, port = address.rpartition(":")
        # A daemon that listens on every address is reached on this machine.
        host = "127.0.0.1" if host in ("", "0.0.0.0", "[::]") else host
        self.url = f"http://{host}:{port}"
        self._client = httpx.Client(base_url=self.url, timeout=timeout_s)

    def close(self) -> None:
        self._client.close()

    def ready(self) -> bool | None:
        """Tell whether the daemon is ready; None where none answers."""
        try:
            return bool(self.status()["ready"])
        except httpx.HTTPError:
            return None

    def status(self) -> dict[str, Any]:
        """Return ready, assigned, parts, stopped_pipelines and samples; see telemetry.http."""
        content: dict[str, Any] = self._get("/status.json").json()
        return content

    def samples(self, after: int) -> tuple[int, list[dict[str, Any]]]:
        """Return how many changes were embedded since the daemon started, and the freshness of those after `after`.

        The fields are those of telemetry.metrics.Sample.
        """
        content = self._get(f"/samples.json?after={after}").json()
        return content["count"], content["samples"]

    def gauges(self, name: str) -> dict[str, float]:
        """Return the values of a metric by the value of its only label."""
        families = text_string_to_metric_families(self._get("/metrics").text)
        return {
            next(iter(sample.labels.values()), ""): sample.value
            for family in families
            if family.name == name
            for sample in family.samples
        }

    def _get(self, path: str) -> httpx.Response:
        reply = self._client.get(path)
        if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            reply.raise_for_status()
        return reply


class Follower:
    """Fetches the samples that are new, from number `after` on.

    Attributes:
        samples: the latest `size` of them, oldest first.
    """

    def __init__(self, http: DaemonHttp, after: int, size: int) -> None:
        self._http = http
        self._after = after
        self.samples: deque[dict[str, Any]] = deque(maxlen=size)

    def fetch(self) -> list[dict[str, Any]]:
        """Return the samples since the last call, and add them to `samples`."""
        self._after, new = self._http.samples(self._after)
        self.samples.extend(new)
        return new
