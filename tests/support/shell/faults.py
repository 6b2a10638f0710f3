"""The calls that cross an edge, numbered in the order in which they are made, and what a script does to them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Reject:
    """The server is away: the call fails before it has had an effect."""


@dataclass(frozen=True)
class LoseAnswer:
    """The call has its effect, and fails: its answer never comes.

    Attributes:
        applied: of a pipeline, how many of its commands have an effect; None: all.
    """

    applied: int | None = None


@dataclass(frozen=True)
class Delay:
    """The call takes so long; half of it before its effect."""

    seconds: float


@dataclass(frozen=True)
class Hold:
    """The call has no effect until it is released."""

    released: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Meanwhile:
    """Something else happens before the call has its effect: the process is killed, Redis goes back, ..."""

    act: Callable[[], Awaitable[None] | None]


Fault = Reject | LoseAnswer | Delay | Hold | Meanwhile


@dataclass(frozen=True)
class Call:
    """One call over an edge.

    Attributes:
        edge: `redis`, `postgres`, `embedder`, `letters` or `kafka`.
        name: of the command or method; of a pipeline, that of its first command.
        subject: what it is about, as a key.
    """

    number: int
    edge: str
    name: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.number} {self.edge}.{self.name} {self.subject}".rstrip()


Script = Callable[[Call], Fault | None]


class Faults:
    """Counts the calls, and does to each what the script says.

    Attributes:
        script: asked for each call; None: nothing happens to it.
        latency_s: asked for how long each call takes.
        calls: all so far; only where `record`.
        in_flight: calls that have not ended.
    """

    def __init__(self, record: bool = False) -> None:
        self.script: Script = lambda _: None
        self.latency_s: Callable[[], float] = lambda: 0.0
        self.record = record
        self.calls: list[Call] = []
        self.count = 0
        self.in_flight = 0

    async def call(
        self,
        edge: str,
        name: str,
        subject: str,
        apply: Callable[[int | None], T],
        away: Callable[[bool], Exception],
    ) -> T:
        """Make a call.

        Args:
            apply: has the effect and answers; given how many commands of a pipeline are applied, None: all.
            away: the error of a server that is away; given whether the call was sent.
        """
        call = Call(self.count, edge, name, subject)
        self.count += 1
        if self.record:
            self.calls.append(call)
        self.in_flight += 1
        try:
            return await self._made(call, apply, away)
        finally:
            self.in_flight -= 1

    async def _made(
        self, call: Call, apply: Callable[[int | None], T], away: Callable[[bool], Exception]
    ) -> T:
        before_s = self.latency_s()
        await asyncio.sleep(before_s)
        match self.script(call):
            case None:
                result = apply(None)
            case Reject():
                raise away(False)
            case LoseAnswer(applied):
                apply(applied)
                await asyncio.sleep(before_s)
                raise away(True)
            case Delay(seconds):
                await asyncio.sleep(seconds / 2)
                result = apply(None)
                await asyncio.sleep(seconds / 2)
            case Hold(released):
                await released.wait()
                result = apply(None)
            case Meanwhile(act):
                outcome = act()
                if outcome is not None:
                    await outcome
                await asyncio.sleep(0)  # a process that was killed meanwhile has no effect any more
                result = apply(None)
        await asyncio.sleep(before_s)
        return result


def at(number: int, fault: Fault) -> Script:
    """That fault at the call of that number, once."""
    return lambda call: fault if call.number == number else None


def while_away(edge: str, is_away: Callable[[], bool]) -> Script:
    """Every call over the edge is refused as long as the server is away."""
    return lambda call: Reject() if call.edge == edge and is_away() else None
