"""Kafka Connect's REST interface, as far as one connector needs it."""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self
from urllib.parse import quote

import httpx

from connectors import slot
from daemon.errors import ConnectorError
from daemon.settings import ConnectSettings, PostgresSource

_POLL_S = 0.1
_CONFLICT_POLL_S = 0.2
_CAUSE_CHARS_MAX = 400
_OFFSET = re.compile(r"PostgresOffsetContext \[.*\]")
"""A page of internals in the middle of Debezium's messages."""


class Applied(StrEnum):
    """What `apply` did."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    RESTARTED = "restarted"
    """The definition was the same, but the connector or its task had failed."""


@dataclass(frozen=True, slots=True)
class Status:
    """A connector as Connect reports it; RUNNING may be stale, see `connectors.slot`.

    Attributes:
        state: RUNNING, PAUSED, STOPPED, FAILED, UNASSIGNED or RESTARTING.
        task: state of its only task; None while there is none.
        error: of the connector or its task when one has failed, without the stack.
    """

    name: str
    state: str
    task: str | None
    error: str

    @property
    def failed(self) -> bool:
        return "FAILED" in (self.state, self.task)


class KafkaConnect:
    """A client of one Connect cluster. Every method raises ConnectorError when Connect refuses or is away."""

    def __init__(self, settings: ConnectSettings) -> None:
        self._url = settings.url
        self._timeout_s = settings.timeout_s
        try:
            self._client = httpx.Client(base_url=settings.url, timeout=settings.timeout_s)
        except httpx.InvalidURL as error:
            raise ConnectorError(
                f"[connect] url {settings.url!r} is no URL: {error}", "correct it"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def plugins(self) -> dict[str, str]:
        """Return classes of the installed connectors and their versions."""
        return {plugin["class"]: plugin["version"] for plugin in self._call("GET", "/connector-plugins")}

    def definition(self, name: str) -> dict[str, str] | None:
        """Return the configuration of a connector; None when there is none."""
        settings = self._call("GET", _path(name, "/config"), absent_ok=True)
        if settings is None:
            return None
        return {str(key): str(value) for key, value in settings.items() if key != "name"}

    def apply(self, name: str, definition: Mapping[str, str], deadline_s: float = 30.0) -> Applied:
        """Make the connector be as `definition` says; the same definition twice changes nothing.

        A running one is stopped first, so that what runs afterwards runs with the new definition: Connect
        answers at once and exchanges the task later. One that is paused stays paused.
        """
        present = self.definition(name)
        if present is None:
            self._call("PUT", _path(name, "/config"), definition)
            return Applied.CREATED
        status = self.status(name)
        if present != dict(definition):
            self._put(name, "stop", _has_stopped, deadline_s)
            try:
                self._call("PUT", _path(name, "/config"), definition)
            finally:
                paused = status is not None and status.state == "PAUSED"
                self._call("PUT", _path(name, "/pause" if paused else "/resume"))
            late = f"connector {name!r} does not resume"
            self._until(lambda: not _has_stopped(self.status(name)), deadline_s, late)
            return Applied.UPDATED
        if status is not None and status.failed:
            self.restart(name)
            return Applied.RESTARTED
        return Applied.UNCHANGED

    def status(self, name: str) -> Status | None:
        """Return what Connect knows of the connector; None when there is none."""
        reply = self._call("GET", _path(name, "/status"), absent_ok=True)
        if reply is None:
            return None
        connector, tasks = reply["connector"], reply["tasks"]
        trace = connector.get("trace") or next((task["trace"] for task in tasks if task.get("trace")), "")
        return Status(name, connector["state"], tasks[0]["state"] if tasks else None, _cause(trace))

    def pause(self, name: str) -> None:
        """Stop reading, keeping the connection to the database; the slot holds back the log meanwhile."""
        self._put(name, "pause", lambda status: status is not None and status.state == "PAUSED")

    def resume(self, name: str) -> None:
        """Go on after `pause` or `forget_offsets`."""
        self._put(name, "resume", lambda status: status is None or status.state not in ("PAUSED", "STOPPED"))

    def restart(self, name: str, only_failed: bool = True) -> None:
        """Restart the connector and its task; `only_failed`: what runs goes on."""
        flags = f"includeTasks=true&onlyFailed={'true' if only_failed else 'false'}"
        self._call("POST", _path(name, f"/restart?{flags}"))

    def delete(self, source: PostgresSource, with_slot: bool, deadline_s: float = 30.0) -> bool:
        """Remove the source's connector; return whether there was one.

        Without its slot, a connector applied again goes on where this one ended, and until then the slot holds
        back the log. With the slot its offsets are forgotten too: they would point past the next slot's start.
        """
        present = self.definition(source.name) is not None
        if present and with_slot:
            self.forget_offsets(source.name, deadline_s)
        if present:
            self._call("DELETE", _path(source.name), absent_ok=True)
            late = f"connector {source.name!r} does not end"
            self._until(lambda: self.status(source.name) is None, deadline_s, late)
        if with_slot:
            slot.drop(source, deadline_s)
        return present

    def forget_offsets(self, name: str, deadline_s: float = 30.0) -> None:
        """Stop the connector and make it forget where it stood; `resume` starts it as if it were new."""
        self._put(name, "stop", _has_stopped, deadline_s)
        self._call("DELETE", _path(name, "/offsets"))

    def wait_until_streaming(
        self,
        source: PostgresSource,
        deadline_s: float,
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Wait until the task runs and PostgreSQL says that the slot is being read.

        Args:
            on_progress: gets a line for a person whenever it changes.

        Raises:
            ConnectorError: the task failed, or the deadline passed; says which half was missing.
        """
        seen = ""

        def streaming() -> bool:
            nonlocal seen
            status = self.status(source.name)
            if status is not None and status.failed:
                raise _failure(source, status)
            if status is not None and status.state in ("PAUSED", "STOPPED"):
                raise ConnectorError(
                    f"connector {source.name!r} is {status.state.lower()}", "run `livevec connector resume`"
                )
            slot_now = slot.read(source)
            line = _describe(status, slot_now)
            if line != seen:
                seen = line
                on_progress(line)
            running = status is not None and (status.state, status.task) == ("RUNNING", "RUNNING")
            return running and slot_now is not None and slot_now.active

        self._until(streaming, deadline_s, lambda: f"connector {source.name!r} is not streaming: {seen}")

    def _put(
        self,
        name: str,
        action: str,
        reached: Callable[[Status | None], bool],
        deadline_s: float | None = None,
    ) -> None:
        """Ask for an action, and wait until the connector's status shows it."""
        self._call("PUT", _path(name, f"/{action}"))
        late = f"connector {name!r} does not {action}"
        self._until(lambda: reached(self.status(name)), deadline_s or self._timeout_s, late)

    def _until(self, condition: Callable[[], bool], deadline_s: float, late: str | Callable[[], str]) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end:
                message = late if isinstance(late, str) else late()
                raise ConnectorError(
                    f"{message} (after {deadline_s:g} s)", "see the log of Kafka Connect, then try again"
                )
            time.sleep(_POLL_S)

    def _call(
        self, method: str, path: str, body: Mapping[str, str] | None = None, absent_ok: bool = False
    ) -> Any:
        """Make a request; a conflict means that the workers are rebalancing, and is repeated."""
        end = time.monotonic() + self._timeout_s
        while True:
            try:
                reply = self._client.request(method, path, json=None if body is None else dict(body))
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
                raise ConnectorError(
                    f"Kafka Connect at {self._url} cannot be reached: {type(error).__name__} {error}".strip(),
                    "check that it is up, and [connect] url",
                ) from error
            # While it rebalances it answers 409, or 500 where a worker learns of it while it answers.
            conflict = reply.status_code == httpx.codes.CONFLICT
            rebalancing = conflict or (reply.is_error and "rebalance" in reply.text)
            if not rebalancing or time.monotonic() >= end:
                break
            time.sleep(_CONFLICT_POLL_S)
        if reply.status_code == httpx.codes.NOT_FOUND and absent_ok:
            return None
        if reply.is_error:
            raise _refusal(method, path, reply)
        try:
            return reply.json() if reply.content else None
        except json.JSONDecodeError as error:
            raise ConnectorError(
                f"what answers at {self._url} is not Kafka Connect: {method} {path} gave no JSON",
                "check [connect] url",
            ) from error


def _has_stopped(status: Status | None) -> bool:
    return status is None or (status.state == "STOPPED" and status.task is None)


def _path(name: str, action: str = "") -> str:
    return f"/connectors/{quote(name, safe='')}{action}"


def _refusal(method: str, path: str, reply: httpx.Response) -> ConnectorError:
    try:
        message = str(reply.json().get("message", ""))
    except (json.JSONDecodeError, AttributeError):
        message = reply.reason_phrase
    remedies: dict[int, str] = {
        httpx.codes.BAD_REQUEST: "correct the source in daemon.toml, then apply again",
        httpx.codes.NOT_FOUND: "create it with `livevec connector apply`",
        httpx.codes.CONFLICT: "its workers are rebalancing; try again in a few seconds",
    }
    remedy = remedies.get(reply.status_code, "see the log of Kafka Connect")
    return ConnectorError(f"Kafka Connect refused {method} {path} ({reply.status_code}): {message}", remedy)


def _failure(source: PostgresSource, status: Status) -> ConnectorError:
    """Return the error of a failed connector, with what helps against the usual causes."""
    remedy = f"correct the cause, then `livevec connector apply` restarts it ({status.name})"
    if "no longer available on the server" in status.error or "slot.name" in status.error:
        remedy = (
            f"slot {source.slot_name!r} was made anew, or moved, so changes were lost: delete the connector "
            "with its slot, raise the source's `era` by one, apply, and backfill"
        )
    elif "publication" in status.error.lower():
        remedy = "run `livevec connector apply`, which checks and creates the publication"
    elif "Failed to properly convert data value" in status.error:
        remedy = (
            "Debezium cannot write a value of this type: `livevec connector apply` leaves the column out where no "
            "pipeline needs it; else correct the row, or ALTER TABLE .. REPLICA IDENTITY FULL"
        )
    return ConnectorError(f"connector {status.name!r} failed: {status.error}", remedy)


def _describe(status: Status | None, slot_now: slot.Slot | None) -> str:
    state = "no connector" if status is None else f"connector {status.state}, task {status.task or 'none'}"
    if slot_now is None:
        return f"{state}, no slot yet"
    return f"{state}, slot {'active' if slot_now.active else 'not active'}"


def _cause(trace: str) -> str:
    """Return the messages of a Java stack trace, outermost first, without its frames.

    Of Java's own exceptions only the class is kept: their messages quote the value that they choked on.
    """
    lines = [line.strip().removeprefix("Caused by: ") for line in trace.splitlines()]
    causes = [line for line in lines if line and not line.startswith(("at ", "..."))]
    shown = [cause.partition(":")[0] if cause.startswith("java.") else cause for cause in causes]
    plain = [_OFFSET.sub("the stored offset", cause)[:_CAUSE_CHARS_MAX] for cause in shown]
    return " | ".join(dict.fromkeys(plain))
