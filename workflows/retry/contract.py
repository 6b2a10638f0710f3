"""What the retry workflow holds, takes and gives: keys, positions, reasons and times, never the text of a row."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

from daemon.settings import RetryDeadLettersSettings
from daemon.source.record import Coordinates

_LETTER_BYTES = 500
_CALL_BYTES_MAX = 200_000
_MESSAGE_MAX = 300


class TryOutcome(StrEnum):
    """What became of one try."""

    APPLIED = "applied"
    """The row, or its absence, is in the index."""
    SUPERSEDED = "superseded"
    """Something newer is stored: nothing was done."""
    REFUSED = "refused"
    """It cannot pass as it is: dead again."""
    GONE = "gone"
    """The refused record cannot be had any more, and nothing else tells what it said."""
    TOO_OLD = "too_old"
    """A later delete's marker may have expired: writing it could bring back what was deleted."""
    LATER = "later"
    """The source does not show the change yet."""
    WAITING = "waiting"
    """Only looked at: nothing newer is stored."""
    DROPPED = "dropped"
    """A person took it out."""


class GivenUp(StrEnum):
    """Why a document is not tried any more."""

    ATTEMPTS = "attempts"
    AGE = "age"
    RECORD_GONE = "record_gone"


@dataclass(frozen=True)
class RetryPolicy:
    """When a document is tried again, and when no more: see `RetryDeadLettersSettings`."""

    pause_s_min: float
    pause_s_max: float
    attempts_max: int
    give_up_after_s: float
    documents_max: int
    wait_for_change: tuple[str, ...]

    @classmethod
    def of(cls, settings: RetryDeadLettersSettings) -> "RetryPolicy":
        return cls(**settings.model_dump())


@dataclass(frozen=True)
class Letter:
    """A dead letter without its row.

    Attributes:
        name: document id; where there is none, the record's coordinates.
        document: id; empty where the record could not be decoded.
        version: of the refused change, encoded; empty where it is not known.
        at_s: when it was dead-lettered.
        place: in the dead-letter topic.
        record: the one that was refused; None for a row that was read from its table.
    """

    name: str
    document: str
    reason: str
    version: str
    at_s: float
    place: Coordinates
    record: Coordinates | None

    @property
    def size_bytes(self) -> int:
        """About how many bytes Temporal stores of it; keys may be long, and Temporal refuses more than 2 MB at once."""
        return _LETTER_BYTES + 2 * len(self.name.encode("utf-8", "replace"))


def within(letters: Iterable[Letter], count_max: int) -> list[Letter]:
    """Return as many of the first as fit into one call, at least one."""
    taken: list[Letter] = []
    size_bytes = 0
    for letter in islice(letters, count_max):
        size_bytes += letter.size_bytes
        if taken and size_bytes > _CALL_BYTES_MAX:
            break
        taken.append(letter)
    return taken


@dataclass(frozen=True)
class Complaint:
    """Why a row of that reason was refused, as an example; holds no text of a row."""

    reason: str
    message: str

    @classmethod
    def of(cls, reason: str, message: str) -> "Complaint":
        """Return it with a message of bounded length, since the workflow keeps it."""
        return cls(reason, message if len(message) <= _MESSAGE_MAX else message[: _MESSAGE_MAX - 1] + "…")


@dataclass(frozen=True)
class Feed:
    """Dead letters for the workflow, in the order of their topic."""

    letters: tuple[Letter, ...]
    complaints: tuple[Complaint, ...]
    policy: RetryPolicy


@dataclass
class Held:
    """One document that waits.

    Attributes:
        letter: its newest.
        attempts: tries that were refused, since the letter or since a person asked for one.
        tries: attempts and looks; they make the pauses grow.
        round: the request of a person that it is tried for; 0: none.
    """

    letter: Letter
    next_at_s: float
    attempts: int = 0
    tries: int = 0
    round: int = 0
    given_up: GivenUp | None = None


@dataclass(frozen=True)
class Attempt:
    """What is to be done about one document; `look`: only see whether something newer is stored."""

    letter: Letter
    look: bool


@dataclass(frozen=True)
class Attempts:
    """What the activity takes."""

    pipeline: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Tried:
    """The result of an attempt; `complaint` where it was refused."""

    letter: Letter
    outcome: TryOutcome
    complaint: Complaint | None = None


@dataclass(frozen=True)
class AllTried:
    """What the activity gives: a result for each attempt, and the policy as it is configured now."""

    tried: tuple[Tried, ...]
    policy: RetryPolicy


@dataclass(frozen=True)
class Selection:
    """The documents that a person means: all, one, or those of one reason."""

    key: str | None = None
    reason: str | None = None

    def takes(self, held: Held) -> bool:
        return self.key in (None, held.letter.name) and self.reason in (None, held.letter.reason)

    def __str__(self) -> str:
        words = [] if self.key is None else [f"the key {self.key!r}"]
        words += [] if self.reason is None else [f"the reason {self.reason!r}"]
        return " and ".join(words) or "any key"


@dataclass
class Round:
    """What one request of a person led to."""

    number: int
    asked: int
    outcomes: dict[TryOutcome, int] = field(default_factory=dict)

    @property
    def open(self) -> int:
        return self.asked - sum(self.outcomes.values())


@dataclass
class Fed:
    """How far one partition of the dead-letter topic was taken: the next offset, and the newest letter's time.

    A later letter at a lower offset is of a topic that was made anew.
    """

    partition: int
    offset: int
    at_s: float


@dataclass
class RetryState:
    """All that outlives one run of the workflow."""

    held: list[Held] = field(default_factory=list)
    fed: list[Fed] = field(default_factory=list)
    complaints: list[Complaint] = field(default_factory=list)
    totals: dict[TryOutcome, int] = field(default_factory=dict)
    taken: int = 0
    rounds: list[Round] = field(default_factory=list)


@dataclass(frozen=True)
class RetryStart:
    """What the workflow takes: the state is that of the run before.

    Attributes:
        calls_max: activities of one run; the next begins with an empty history.
    """

    pipeline: str
    policy: RetryPolicy
    state: RetryState = field(default_factory=RetryState)
    calls_max: int = 200


@dataclass(frozen=True)
class RetryStatus:
    """Where it stands: documents by reason, and how many more can be held."""

    waiting: dict[str, int]
    given_up: dict[str, int]
    room: int
    next_at_s: float | None
    taken: int
    totals: dict[TryOutcome, int]
    trouble: str


@dataclass(frozen=True)
class RetryEnd:
    """What became of all dead letters that were taken, until none was left."""

    taken: int
    totals: dict[TryOutcome, int]
