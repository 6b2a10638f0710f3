"""`livevec retry --list` and `--show`: what Temporal holds, and what waits in Kafka; without Temporal, Kafka alone."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from daemon.cli import console
from daemon.errors import LivevecError, WorkflowError
from daemon.settings import Config
from daemon.source.kafka.dead_letter_reader import DeadLetter, read_committed, read_letters
from workflows.client import connect
from workflows.retry.client import RetryClient
from workflows.retry.contract import Held, Letter, RetryState
from workflows.retry.feeder import group_id

_LETTERS_MAX = 10_000
_SHOWN_MAX = 50
_TEMPORAL_S = 20.0


@dataclass(frozen=True)
class Listing:
    """All of a pipeline; `note`: what could not be asked, `left_out`: older dead letters that were not read."""

    documents: list[dict[str, Any]]
    letters: dict[str, DeadLetter]
    note: str
    left_out: int


def list_(config: Config, pipeline: str, reason: str | None, key: str | None, as_json: bool) -> None:
    """Print all, or those of a reason or key."""
    listing = asyncio.run(_listing(config, pipeline))
    documents = [
        document
        for document in listing.documents
        if reason in (None, document["reason"]) and key in (None, document["key"])
    ]
    if as_json:
        content = {"pipeline": pipeline, "note": listing.note, "left_out": listing.left_out}
        console.print_json({**content, "dead_letters": documents})
        return
    if listing.note:
        console.err.print(listing.note, markup=False, style="yellow")
    if not documents:
        console.out.print(f"no dead letters of {pipeline}")
        return
    table = console.table("key", "reason", "state", "attempts", "next try", "why")
    for document in documents[:_SHOWN_MAX]:
        cells = (document[name] for name in ("key", "reason", "state", "attempts", "next_try_at", "message"))
        table.add_row(*(console.plain("" if cell is None else cell) for cell in cells))
    console.out.print(table)
    if len(documents) > _SHOWN_MAX:
        console.out.print(f"and {len(documents) - _SHOWN_MAX:,} more; --json prints all")


def show(config: Config, pipeline: str, key: str, as_json: bool) -> None:
    """Print all that is known of a document.

    Raises:
        LivevecError: there is none of that key.
    """
    listing = asyncio.run(_listing(config, pipeline))
    document = next((document for document in listing.documents if document["key"] == key), None)
    if document is None:
        raise LivevecError(
            f"{pipeline} has no dead letter with the key {key!r}; --list shows those there are"
        )
    letter = listing.letters.get(key)
    content: dict[str, Any] = {**document, "note": listing.note}
    if letter is not None:
        content["operation"] = letter.operation
        content["committed_at"] = _time(letter.committed_at_s)
        content["kept_bytes"] = None if letter.value is None else len(letter.value)
    if as_json:
        console.print_json(content)
        return
    console.print_fields({name.replace("_", " "): value for name, value in content.items()})


async def _listing(config: Config, pipeline: str) -> Listing:
    topic = config.kafka.dead_letter_topic(pipeline)
    read = await asyncio.to_thread(read_letters, config.kafka, topic, _LETTERS_MAX)
    group = config.kafka.model_copy(update={"group_id": group_id(config)})
    taken = await asyncio.to_thread(read_committed, group, topic)
    state, note = await _state(config, pipeline)
    letters = {letter.name: letter for letter in read.letters}
    documents = [_held(held, letters, state) for held in state.held] if state is not None else []
    named = {document["key"] for document in documents}
    for letter in letters.values():
        waits = letter.place.offset >= taken.get(letter.place.partition, 0)
        if letter.name not in named and (waits or state is None):
            where = "not taken yet" if waits else "unknown"
            documents.append(_listed(letter, letter.dead_lettered_at_s, where, letter.message))
    return Listing(documents, letters, note, read.left_out)


async def _state(config: Config, pipeline: str) -> tuple[RetryState | None, str]:
    try:
        # A server that takes connections and says nothing is waited for by the SDK for half a minute.
        async with asyncio.timeout(_TEMPORAL_S):
            return await RetryClient(await connect(config), pipeline).state(), ""
    except (WorkflowError, TimeoutError) as error:
        why = str(error) or f"Temporal does not answer at {config.temporal.address}"
        return None, f"{why}. This list is Kafka's alone: what was mended since is in it"


def _held(held: Held, letters: dict[str, DeadLetter], state: RetryState) -> dict[str, Any]:
    letter = held.letter
    dead = letters.get(letter.name)
    if dead is not None and (dead.reason, dead.place) == (letter.reason, letter.place):
        message = dead.message
    else:
        messages = {complaint.reason: complaint.message for complaint in state.complaints}
        message = messages.get(letter.reason, "")
    waits = f"given up: {held.given_up}" if held.given_up else "waits"
    return _listed(letter, letter.at_s, waits, message, held.attempts, _time(held.next_at_s))


def _listed(
    letter: Letter | DeadLetter,
    at_s: float,
    state: str,
    message: str,
    attempts: int | None = None,
    next_try_at: str | None = None,
) -> dict[str, Any]:
    """Return a document as it is printed; `attempts` and `next_try_at` are not known without Temporal."""
    return {
        "key": letter.name,
        "reason": letter.reason,
        "state": state,
        "message": message,
        "dead_lettered_at": _time(at_s),
        "version": letter.version,
        "attempts": attempts,
        "next_try_at": next_try_at,
        "place": str(letter.place),
        "record": str(letter.record) if letter.record else None,
    }


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
