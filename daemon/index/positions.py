"""How far the log is applied, written beside the data it was applied to.

A Redis that comes back older than the consumer group's offsets (a lost AOF tail, a restored dump, a failover to
a lagging replica, FLUSHALL) tells so by an older position. Each shard holds one hash: `topic/partition` ->
`claim:offset`. A daemon that is assigned a partition claims it, and from then on advances it by compare-and-set
from the value it wrote last; what it finds instead tells a Redis that went back from a successor's claim. A Redis
that was started anew may have lost writes that no position covers yet: its run id, which goes with every advance,
tells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import cast

from daemon.index.connection import Client, key_of_each_primary, translated
from daemon.index.layout import positions_key
from daemon.index.writer import call_function

Partition = tuple[str, int]
_SERVER = "@server"
"""See functions.lua."""


class Verdict(Enum):
    ADVANCED = "advanced"
    WENT_BACK = "went_back"
    """Redis holds an older position than was written, or none: its data went back too."""
    RESTARTED = "restarted"
    """It is another process than was written to: what it had not on disk yet, and no position covers, is gone."""
    FENCED = "fenced"
    """Another daemon has claimed a partition: it is not ours any more."""


@dataclass(frozen=True, slots=True)
class Position:
    """claim: how often the partition was claimed; offset: the next to be applied."""

    claim: int
    offset: int

    def encode(self) -> str:
        return f"{self.claim}:{self.offset}"

    @classmethod
    def decode(cls, text: bytes | None) -> "Position | None":
        if not text:
            return None
        claim, offset = text.split(b":")
        return cls(int(claim), int(offset))


class Positions:
    """The positions of one consumer group."""

    def __init__(self, client: Client, group: str) -> None:
        self._client = client
        self._group = group
        self._keys: list[str] = []
        self._known: dict[str, dict[Partition, Position]] = {}
        self._servers: dict[str, str] = {}

    async def claim(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        """Claim partitions; return the offset up to which every shard has applied each, None where one has none."""
        shards = await key_of_each_primary(self._client, partial(positions_key, self._group))
        self._keys = list(shards.values())
        if not partitions:
            return {}
        applied: dict[Partition, int | None] = {}
        for key in self._keys:
            known = self._known.setdefault(key, {})
            # Told before the positions are read: a restart in between shows with the first advance.
            server = (await self._call(key, [_SERVER, "", ""]))[1].decode()
            if not known.keys() - set(partitions):
                self._servers[key] = server
            with translated():
                stored = await self._client.hmget(key, [_field(p) for p in partitions])
            updates: list[str | int] = []
            for partition, text in zip(partitions, cast(Sequence[bytes | None], stored), strict=True):
                before = Position.decode(text)
                known[partition] = Position(
                    before.claim + 1 if before else 1, before.offset if before else -1
                )
                offset = known[partition].offset if known[partition].offset >= 0 else None
                least = applied.get(partition, offset)
                applied[partition] = None if offset is None or least is None else min(offset, least)
                updates += (_field(partition), before.encode() if before else "", known[partition].encode())
            await self._call(key, updates)
        return applied

    async def advance(self, offsets: Mapping[Partition, int]) -> Verdict:
        """Advance claimed partitions; positions only grow."""
        for key in self._keys:
            verdict = None
            while verdict is None:
                verdict = await self._advance(key, offsets)
            if verdict is not Verdict.ADVANCED:
                return verdict
        return Verdict.ADVANCED

    async def _advance(self, key: str, offsets: Mapping[Partition, int]) -> Verdict | None:
        """Advance the positions of one shard; None: what is known of it was behind, and is not any more."""
        known = self._known[key]
        moves = {
            partition: Position(known[partition].claim, offset)
            for partition, offset in offsets.items()
            if partition in known and offset > known[partition].offset
        }
        expected = {partition: known[partition] for partition in moves}
        server = self._servers[key]
        updates: list[str | int] = [_SERVER, server, server]
        for partition, position in moves.items():
            updates += (_field(partition), expected[partition].encode(), position.encode())
        differing = await self._call(key, updates) if moves else []
        if not differing:
            # Partitions may have been released, or claimed anew, while Redis was asked.
            known.update((p, moves[p]) for p, position in expected.items() if known.get(p) == position)
            return Verdict.ADVANCED
        if differing[0] == _SERVER.encode():
            # Of all positions that are held, not only of those that move.
            held = dict(known)
            unmoved = [text for p, position in held.items() for text in (_field(p), *[position.encode()] * 2)]
            stored = _stored(await self._call(key, unmoved), held)
            return Verdict.WENT_BACK if _verdict(stored, held) is Verdict.WENT_BACK else Verdict.RESTARTED
        stored = _stored(differing, expected)
        if all(
            position is not None
            and position.claim == expected[p].claim
            and position.offset > expected[p].offset
            for p, position in stored.items()
        ):
            # Under its claim only this daemon advances a position: an advance whose answer was lost, or another one
            # at the same time, was applied.
            known.update(
                (p, position) for p, position in stored.items() if position and known.get(p) == expected[p]
            )
            return None
        return _verdict(stored, expected)

    async def reset(self, partition: Partition) -> None:
        """Forget how far a claimed partition was applied: its offsets start anew."""
        for key in self._keys:
            known = self._known[key]
            if partition in known:
                reset = Position(known[partition].claim, -1)
                await self._call(key, [_field(partition), known[partition].encode(), reset.encode()])
                known[partition] = reset

    def release(self, partitions: Sequence[Partition]) -> None:
        for known in self._known.values():
            for partition in partitions:
                known.pop(partition, None)

    async def _call(self, key: str, updates: Sequence[str | int]) -> list[bytes]:
        reply = await call_function(self._client, "livevec_advance", key, *updates)
        return reply if isinstance(reply, list) else []


def _field(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"


def _stored(
    differing: Sequence[bytes], expected: Mapping[Partition, Position]
) -> dict[Partition, Position | None]:
    """Return what is stored of those that are not as expected."""
    fields = {_field(partition): partition for partition in expected}
    texts = zip(differing[::2], differing[1::2], strict=True)
    return {fields[field.decode()]: Position.decode(text) for field, text in texts}


def _verdict(stored: Mapping[Partition, Position | None], expected: Mapping[Partition, Position]) -> Verdict:
    for partition, position in stored.items():
        if position is None or position.claim < expected[partition].claim:
            return Verdict.WENT_BACK
        if position.claim == expected[partition].claim and position.offset < expected[partition].offset:
            return Verdict.WENT_BACK
    return Verdict.FENCED
