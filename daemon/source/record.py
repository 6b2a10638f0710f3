"""A raw record, as Kafka delivers it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where a record is."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        appended_at_s: the record's timestamp, seconds since the epoch.
        received_at_s: when the consumer got it.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    appended_at_s: float
    received_at_s: float

    @property
    def size_bytes(self) -> int:
        return len(self.key or b"") + len(self.value or b"")
