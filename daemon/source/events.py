"""Event topics -> changes: plain JSON objects keyed by id, written by applications without a database.

The partition's offset is the version, so one id must always be written to one partition (Kafka's default
partitioner does that while the number of partitions stays); a null value deletes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from daemon.core.change import Change, Operation
from daemon.core.version import LogVersion
from daemon.errors import RejectRow
from daemon.source.record import Record


@dataclass(frozen=True, slots=True)
class EventDecoder:
    """Decodes the records of one event topic.

    Attributes:
        columns: members that the pipeline needs of each object.
    """

    topic: str
    columns: Sequence[str]

    def decode(self, record: Record) -> Change:
        """Return the change of one record.

        Raises:
            RejectRow: no key, not UTF-8, not a JSON object, or a member that the pipeline needs is missing.
        """
        if not record.key:
            raise RejectRow(
                f"an event of {self.topic} has no key; write it with the row's id as key", "no_key"
            )
        try:
            key = (record.key.decode(),)
        except UnicodeDecodeError as error:
            raise RejectRow(f"the key of an event of {self.topic} is not UTF-8", "malformed_key") from error
        version = LogVersion(0, record.offset + 1, 0, 0)
        at_s = record.appended_at_s
        if record.value is None:
            return Change(Operation.DELETE, key, None, version, 0, None, at_s, at_s)
        try:
            row = orjson.loads(record.value)
        except orjson.JSONDecodeError as error:
            raise RejectRow(f"an event of {self.topic} is not JSON ({error})", "malformed_json") from error
        if not isinstance(row, dict):
            raise RejectRow(f"an event of {self.topic} is not a JSON object", "malformed_value")
        missing = [column for column in self.columns if column not in row]
        if missing:
            raise RejectRow(
                f"an event of {self.topic} lacks {', '.join(missing)}, which the pipeline's text or metadata names",
                "missing_column",
            )
        return Change(Operation.UPSERT, key, row, version, 0, None, at_s, at_s)
