"""The dead letters that were written, in place of the producer of `daemon.source.kafka.dead_letters`."""

from dataclasses import dataclass, field

from daemon.errors import RetryLater
from tests.support.shell.faults import Faults
from tests.support.shell.process import Process


@dataclass(frozen=True)
class Letter:
    topic: str
    key: bytes | None
    value: bytes | None
    headers: dict[str, str] = field(hash=False)

    @property
    def document(self) -> str:
        return self.headers["livevec.document"]

    @property
    def reason(self) -> str:
        return self.headers["livevec.reason"]


class LetterBox:
    """Outlives every process."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.letters: list[Letter] = []

    def producer(self, process: Process | None = None) -> "FakeDeadLetterProducer":
        return FakeDeadLetterProducer(self, process or Process())


class FakeDeadLetterProducer:
    """See `daemon.source.kafka.dead_letters.DeadLetterProducer`."""

    def __init__(self, box: LetterBox, process: Process) -> None:
        self._box = box
        self._process = process

    async def send(self, topic: str, key: bytes | None, value: bytes | None, headers: dict[str, str]) -> None:
        self._process.check()

        def apply(_: int | None) -> None:
            self._process.check()
            self._box.letters.append(Letter(topic, key, value, dict(headers)))

        def away(_: bool) -> Exception:
            return RetryLater("Kafka did not take a dead letter", 0.5)

        await self._box.faults.call("letters", "send", headers["livevec.document"], apply, away)
        self._process.check()

    def close(self) -> None:
        """Nothing is held back here."""
