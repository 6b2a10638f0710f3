"""Every write to the index, made under the version rule by functions.lua, and the look-ups before it."""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib.resources import files
from itertools import chain
from typing import Any, cast

from daemon.core.plan import Stored
from daemon.core.version import Version, decode
from daemon.errors import FailureClass
from daemon.index.connection import Client, Command, FunctionsMissing, failure, pipelined, translated
from daemon.index.keyspace import KEYS_PER_STEP, Keyspace
from daemon.index.layout import Layout, pipeline_key


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
        command: list[str | bytes | int] = [*_call("livevec_put", layout, self.id), self.version.encode()]
        command += (self.content_hash, self.metadata_hash, len(self.chunks), len(self.metadata) + 1)
        command += ("id", self.id, *chain.from_iterable(self.metadata))
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
        hashes = (self.version.encode(), self.content_hash, self.metadata_hash)
        fields = chain.from_iterable(self.metadata)
        call = _call("livevec_touch", layout, self.id)
        return [*call, *hashes, len(self.metadata), *fields, *self.absent]


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a document and leave a marker that expires."""

    id: str
    version: Version
    marker_ttl_ms: int

    def command(self, layout: Layout) -> Command:
        return [*_call("livevec_delete", layout, self.id), self.version.encode(), self.marker_ttl_ms]


Write = Put | Touch | Delete


@dataclass(frozen=True)
class IndexWriter:
    """Writes one index version.

    Attributes:
        commands_max: writes sent in one go; larger ones delay concurrent searches.
    """

    client: Client
    layout: Layout
    commands_max: int

    async def lookup(self, ids: Sequence[str]) -> list[Stored | None]:
        """Return bookkeeping of each id, in one round trip.

        Raises:
            FailureClass: see `connection.failure`.
        """
        reads = [("HMGET", self.layout.bookkeeping(identifier), "v", "h", "m") for identifier in ids]
        rows = await pipelined(self.client, reads)
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
            commands = [write.command(self.layout) for write in writes[start : start + self.commands_max]]
            replies = await pipelined(self.client, commands, raise_on_error=False)
            results += [
                failure(reply) if isinstance(reply, Exception) else Result(reply) for reply in replies
            ]
        missing = next((result for result in results if isinstance(result, FunctionsMissing)), None)
        if missing is not None:
            await load_functions(self.client)
            raise missing
        return results

    async def raise_floors(self, version: Version) -> None:
        """Put a floor into every bucket; must end before a sweep starts."""
        floor = version.encode()
        calls = [("FCALL", "livevec_raise_floor", 1, key, floor) for key in self.layout.floors()]
        await pipelined(self.client, calls)

    async def sweep(self, version: Version, on_progress: Callable[[int], None] = lambda _: None) -> int:
        """Remove every document and marker that `version` is newer than; return how many."""
        removed = seen = 0
        async for ids in self.ids(500):
            text = version.encode()
            calls = [[*_call("livevec_sweep", self.layout, identifier), text] for identifier in ids]
            removed += sum(reply == Result.APPLIED for reply in await pipelined(self.client, calls))
            seen += len(ids)
            on_progress(seen)
        return removed

    async def mark_for_reconcile(self, reason: str) -> None:
        """Note that the log alone cannot make this index right; `livevec verify --repair` can."""
        pipeline, now_s = self.layout.pipeline, repr(time.time())
        with translated():
            await cast(Any, self.client).hset(pipeline_key(pipeline, "gaps"), reason, now_s)
            await cast(Any, self.client).hset(pipeline_key(pipeline, "reconcile"), reason, now_s)

    async def reconcile_reasons(self) -> dict[str, float]:
        """Return why a reconcile is due, and since when (seconds since the epoch); empty: none is."""
        with translated():
            reasons = await cast(Any, self.client).hgetall(pipeline_key(self.layout.pipeline, "reconcile"))
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
        await call_function(
            self.client, "livevec_clear_marks", pipeline_key(self.layout.pipeline, "reconcile"), *parts
        )

    async def ids(self, count: int) -> AsyncIterator[list[str]]:
        """Return ids of all documents and markers, in batches; those that change meanwhile may come twice or not."""
        keyspace = Keyspace(self.client, self.layout)
        position = await keyspace.beginning()
        batch: list[str] = []
        while not position.done:
            step = await keyspace.step(position, KEYS_PER_STEP)
            position = step.position
            prefix = self.layout.bookkeeping_prefix
            batch += [self.layout.identifier(key) for key in step.keys if key.startswith(prefix)]
            while len(batch) >= count or (batch and position.done):
                yield batch[:count]
                del batch[:count]


async def load_functions(client: Client) -> None:
    """Load (or renew) the function library on every primary."""
    code = (files("daemon.index") / "functions.lua").read_text("utf-8")
    with translated():
        await cast(Any, client).function_load(code, replace=True)


async def call_function(client: Client, function: str, key: str, *arguments: str | int) -> Any:
    """Call a function of the library with one key; where the library is missing, load it for the next attempt.

    Raises:
        FailureClass: Redis failed, or the library was missing.
    """
    try:
        with translated():
            return await cast(Any, client).fcall(function, 1, key, *arguments)
    except FunctionsMissing:
        await load_functions(client)
        raise


def _call(function: str, layout: Layout, identifier: str) -> Command:
    return ["FCALL", function, 3, *layout.keys(identifier)]
