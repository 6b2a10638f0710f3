"""All keys of an index version, in bounded steps from a position that outlives the process.

SCAN gives every key that is there from its beginning to its end, whatever is written meanwhile, but a cursor means
something only to the process that gave it: another one hashes keys differently. A slot that moves takes its keys to a
node that may be done. So a position names the servers and their slots, and a walk begins again when they change.
"""

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from redis.asyncio.cluster import RedisCluster

from daemon.index.connection import Client, pipelined, translated
from daemon.index.layout import Layout
from daemon.patience import Patience

KEYS_PER_STEP = 1000
"""Keys of the whole Redis that one step looks at; few of them may be this version's."""
_ALONE = ""
"""Name of the one node of a Redis that is no cluster."""


@dataclass(frozen=True)
class WalkPosition:
    """Where a walk is.

    Attributes:
        servers: which processes hold which keys, as a digest.
        cursors: of the nodes that are not done; 0 is the beginning.
    """

    servers: str
    cursors: tuple[tuple[str, int], ...]

    @property
    def done(self) -> bool:
        return not self.cursors


@dataclass(frozen=True, slots=True)
class WalkStep:
    """Keys of one step, and where the next one goes on.

    Attributes:
        restarted: the servers have changed; what was counted before will be counted again.
    """

    keys: list[str]
    position: WalkPosition
    restarted: bool


class Keyspace:
    """The keys of one index version: bookkeeping, documents and floors; some may come twice."""

    def __init__(self, client: Client, layout: Layout) -> None:
        self._client = cast(Any, client)
        self._pattern = _glob_escaped(f"lv:{layout.pipeline}:{layout.version}:") + "*"

    async def beginning(self) -> WalkPosition:
        """Return the position before the first key."""
        with translated():
            nodes = await self._nodes()
            return WalkPosition(await self._servers(nodes), tuple((name, 0) for name in sorted(nodes)))

    async def steps(self, patience: Patience) -> AsyncIterator[WalkStep]:
        """Give all keys, from the first to the last; Redis is waited for as long as `patience` says."""
        position = await patience.call("redis", self.beginning)
        while not position.done:
            step = await patience.call("redis", self.step, position, KEYS_PER_STEP)
            position = step.position
            yield step

    async def step(self, position: WalkPosition, count: int) -> WalkStep:
        """Return the keys after a position that is not done.

        Args:
            count: see KEYS_PER_STEP.

        Raises:
            FailureClass: Redis failed.
        """
        with translated():
            nodes = await self._nodes()
            (name, cursor), *later = position.cursors
            now = await self._servers(nodes) if name in nodes else ""
            if now != position.servers:
                return WalkStep([], await self.beginning(), restarted=True)
            command = ("SCAN", cursor, "MATCH", self._pattern, "COUNT", count)
            cursors, keys = await self._client.execute_command(*command, **nodes[name])
        after = int(next(iter(cursors.values())) if isinstance(cursors, Mapping) else cursors)
        left = [(name, after)] if after else []
        texts = [key.decode("utf-8", "replace") for key in keys]
        return WalkStep(texts, replace(position, cursors=(*left, *later)), restarted=False)

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove keys, whoever wrote them.

        Raises:
            FailureClass: Redis failed.
        """
        if keys:
            await pipelined(self._client, [("UNLINK", key) for key in keys])

    async def _nodes(self) -> dict[str, dict[str, Any]]:
        """Return, for each primary, what sends a command to it."""
        if isinstance(self._client, RedisCluster):
            await self._client.initialize()
            return {node.name: {"target_nodes": node} for node in self._client.get_primaries()}
        return {_ALONE: {}}

    async def _servers(self, nodes: Mapping[str, Mapping[str, Any]]) -> str:
        facts = []
        for name, where in sorted(nodes.items()):
            info = await self._client.execute_command("INFO", "server", **where)
            facts.append(f"{name} {info['run_id']}")
        if isinstance(self._client, RedisCluster):
            slots = await self._client.execute_command("CLUSTER SLOTS", **nodes[min(nodes)])
            facts += sorted(f"{slots_of} {held['primary']}" for slots_of, held in slots.items())
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _glob_escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]^-\\" else char for char in text)
