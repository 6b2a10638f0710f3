"""Every write to the index, made under the version rule by functions.lua, and the look-ups before it."""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib.resources import files
from typing import Any, cast

from daemon.core.plan import Stored
from daemon.core.version import Version, decode
from daemon.errors import FailureClass
from daemon.index.connection import Client, FunctionsMissing, failure, translated
from daemon.index.keyspace import Keyspace
from daemon.index.layout import Layout, gaps_key, reconcile_key

Command = list[str | bytes | int]
_KEYS_PER_STEP = 1000


class Result(IntEnum):
    """What a write did; the numbers are those of functions.lua."""

    SUPERSEDED = 0
    APPLIED = 1
    CONFLICT = 2
    ABSENT = 3


@dataclass(frozen=True, slots=True)
class Put:
    """Write a document whole: `chunks` are (text, vector bytes), none for a blank text."""

    id: str
    version: Version
    content_hash: str
    metadata_hash: str
    metadata: tuple[tuple[str, str], ...]
    chunks: tuple[tuple[str, bytes], ...]

    def command(self, layout: Layout) -> Command:
        command = _call("livevec_put", layout, self.id)
        command += (self.version.encode(), self.content_hash, self.metadata_hash)
        command += (len(self.chunks), len(self.metadata) + 1, "id", self.id)
        for field in self.metadata:
            command += field
        for chunk in self.chunks:
            command += chunk
        return command


@dataclass(frozen=True, slots=True)
class Touch:
    """Move the version on and set the metadata; refused unless `content_hash` is what is stored."""

    id: str
    version: Version
    content_hash: str
    metadata_hash: str
    metadata: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]

    def command(self, layout: Layout) -> Command:
        command = _call("livevec_touch", layout, self.id)
        command += (self.version.encode(), self.content_hash, self.metadata_hash, len(self.metadata))
        for field in self.metadata:
            command += field
        return [*command, *self.absent]


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a document and leave a marker that expires."""

    id: str
    version: Version
    marker_ttl_ms: int

    def command(self, layout: Layout) -> Command:
        return [
            "FCALL",
            "livevec_delete",
            3,
            *layout.keys(self.id),
            self.version.encode(),
            self.marker_ttl_ms,
        ]


Write = Put | Touch | Delete


class IndexWriter:
    """Writes one index version.

    Args:
        client: of Redis.
        layout: names of the index version's keys.
        pipeline_commands_max: writes sent in one go; larger ones delay concurrent searches.
    """

    def __init__(self, client: Client, layout: Layout, pipeline_commands_max: int) -> None:
        self._client = client
        self.layout = layout
        self.commands_max = pipeline_commands_max

    async def lookup(self, ids: Sequence[str]) -> list[Stored | None]:
        """Return bookkeeping of each id, in one round trip.

        Raises:
            FailureClass: see `connection.failure`.
        """
        pipe = self._client.pipeline(transaction=False)
        for identifier in ids:
            pipe.execute_command("HMGET", self.layout.bookkeeping(identifier), "v", "h", "m")
        with translated():
            rows = await pipe.execute()
        return [
            Stored(decode(v.decode()), h.decode() if h else None, m.decode() if m else None) if v else None
            for v, h, m in rows
        ]

    async def write(self, writes: Sequence[Write]) -> list[Result | FailureClass]:
        """Make each write; a write that Redis refused gives its failure in its place.

        Raises:
            FailureClass: the connection failed; what was written before is not known, and may be repeated.
        """
        results: list[Result | FailureClass] = []
        for start in range(0, len(writes), self.commands_max):
            pipe = self._client.pipeline(transaction=False)
            for write in writes[start : start + self.commands_max]:
                pipe.execute_command(*write.command(self.layout))
            with translated():
                replies = await pipe.execute(raise_on_error=False)
            results.extend(_result(reply) for reply in replies)
        missing = next((result for result in results if isinstance(result, FunctionsMissing)), None)
        if missing is not None:
            await load_functions(self._client)
            raise missing
        return results

    async def raise_floors(self, version: Version) -> None:
        """Put a floor into every bucket; must end before a sweep starts."""
        pipe = self._client.pipeline(transaction=False)
        for key in self.layout.floors():
            pipe.execute_command("FCALL", "livevec_raise_floor", 1, key, version.encode())
        with translated():
            await pipe.execute()

    async def sweep(self, version: Version, on_progress: Callable[[int], None] = lambda _: None) -> int:
        """Remove every document and marker that `version` is newer than; answers how many."""
        removed = seen = 0
        async for ids in self.ids(500):
            pipe = self._client.pipeline(transaction=False)
            for identifier in ids:
                pipe.execute_command(*_call("livevec_sweep", self.layout, identifier), version.encode())
            with translated():
                removed += sum(reply == Result.APPLIED for reply in await pipe.execute())
            seen += len(ids)
            on_progress(seen)
        return removed

    async def mark_for_reconcile(self, reason: str) -> None:
        """Note that the log alone cannot make this index right; `livevec verify --repair` can."""
        pipeline, now_s = self.layout.pipeline, repr(time.time())
        with translated():
            await cast(Any, self._client).hset(gaps_key(pipeline), reason, now_s)
            await cast(Any, self._client).hset(reconcile_key(pipeline), reason, now_s)

    async def reconcile_reasons(self) -> dict[str, float]:
        """Return why a reconcile is due, and since when (seconds since the epoch); empty: none is."""
        with translated():
            reasons = await cast(Any, self._client).hgetall(reconcile_key(self.layout.pipeline))
        return {reason.decode(): float(since) for reason, since in reasons.items()}

    async def reconciled(self, marks: Mapping[str, float]) -> None:
        """Forget the marks that a reconcile, started after they were read, has dealt with.

        A reason that came up again meanwhile has a later time, and stays.

        Args:
            marks: as `reconcile_reasons` gave them.
        """
        if not marks:
            return
        parts = [text for reason, since_s in marks.items() for text in (reason, repr(since_s))]
        key = reconcile_key(self.layout.pipeline)
        try:
            with translated():
                await cast(Any, self._client).fcall("livevec_clear_marks", 1, key, *parts)
        except FunctionsMissing:
            await load_functions(self._client)
            raise

    async def ids(self, count: int) -> AsyncIterator[list[str]]:
        """Return ids of all documents and markers, in batches; those that change meanwhile may come twice or not."""
        keyspace = Keyspace(self._client, self.layout)
        position = await keyspace.beginning()
        batch: list[str] = []
        while not position.done:
            step = await keyspace.step(position, _KEYS_PER_STEP)
            position = step.position
            for key in step.keys:
                if key.startswith(self.layout.bookkeeping_prefix):
                    batch.append(self.layout.identifier(key))
                if len(batch) >= count:
                    yield batch
                    batch = []
        if batch:
            yield batch


async def load_functions(client: Client) -> None:
    """Load (or renew) the function library on every primary."""
    code = (files("daemon.index") / "functions.lua").read_text("utf-8")
    with translated():
        await cast(Any, client).function_load(code, replace=True)


def _call(function: str, layout: Layout, identifier: str) -> Command:
    return ["FCALL", function, 3, *layout.keys(identifier)]


def _result(reply: object) -> Result | FailureClass:
    if isinstance(reply, Exception):
        return failure(reply)
    return Result(cast(int, reply))
