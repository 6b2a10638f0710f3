"""The HTTP server of the daemon: /metrics, /healthz, /readyz, /status.json, /samples.json?after=N.

It runs in threads of its own, so that a scrape never waits for a batch, and /healthz shows a stuck event loop.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.exposition import ThreadingWSGIServer

from daemon.errors import ConfigError
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics

_STUCK_AFTER_S = 15.0
_UNAVAILABLE = "503 Service Unavailable"
_PAGES = b"/metrics\n/healthz\n/readyz\n/status.json\n/samples.json"
Answer = tuple[str, str, bytes]


class TelemetryServer:
    """Serves the metrics and the health at `address`, `host:port`; `setting` is its key in daemon.toml, for errors."""

    def __init__(
        self, address: str, metrics: Metrics, health: Health, setting: str = "telemetry.address"
    ) -> None:
        self._metrics = metrics
        self._health = health
        host, _, port = address.rpartition(":")
        try:
            self._server = make_server(
                host or "0.0.0.0", int(port), self._serve, ThreadingWSGIServer, _QuietHandler
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{setting} {address!r} cannot be used ({error}); stop what listens there, or set another one"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="telemetry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        status, kind, body = self._answer(environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    def _answer(self, path: str, query: str) -> Answer:
        match path:
            case "/metrics":
                return "200 OK", CONTENT_TYPE_LATEST, generate_latest(self._metrics.registry)
            case "/healthz":
                silent_s = time.monotonic() - self._health.alive_at_s
                if silent_s > _STUCK_AFTER_S:
                    message = f"the event loop has been silent for {silent_s:.0f} s\n"
                    return _UNAVAILABLE, "text/plain", message.encode()
                return "200 OK", "text/plain", b"alive\n"
            case "/readyz":
                return "200 OK" if self._health.ready else _UNAVAILABLE, "application/json", self._state()
            case "/status.json":
                return "200 OK", "application/json", self._state()
            case "/samples.json":
                return self._samples(query)
        return "404 Not Found", "text/plain", _PAGES

    def _state(self) -> bytes:
        health = self._health
        return orjson.dumps(
            {
                "ready": health.ready,
                "assigned": health.assigned,
                "parts": {name: asdict(part) for name, part in health.parts.items()},
                "stopped_pipelines": health.stopped_pipelines,
                "samples": self._metrics.samples.count,
            }
        )

    def _samples(self, query: str) -> Answer:
        after = parse_qs(query).get("after", ["0"])[0]
        if not after.isdigit():
            return "400 Bad Request", "text/plain", b"after=N: a number, as /status.json gives in `samples`\n"
        ring = self._metrics.samples
        body = orjson.dumps({"count": ring.count, "samples": ring.after(int(after))})
        return "200 OK", "application/json", body


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""
