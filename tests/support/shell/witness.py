"""Watches every write to Redis and every commit of offsets, for what may never be.

- An offset is committed before the effect of a record below it is in Redis. Where Redis went back since, its position
  must be below the offset: whoever gets the partition then sees the loss.
- An offset that is older than the last is committed, although Redis did not go back.
- A reader finds an older state of a row than it found before, although Redis did not go back.
"""

from collections.abc import Callable
from typing import Any

import orjson

from daemon.core.version import LogVersion, SnapshotVersion, Version, decode, replaces, widen_xid
from daemon.index.layout import BUCKETS, Layout, bucket_of, positions_key
from daemon.settings import ERA_HEADER
from daemon.source.kafka.reader import Partition
from tests.support.shell.kafka import Appended
from tests.support.shell.redis import Arguments
from tests.support.shell.servers import Servers

_CHANGES_A_DOCUMENT = ("livevec_put", "livevec_touch", "livevec_delete", "livevec_sweep")


class Witness:
    """Notes what is wrong; `wrong` is empty as long as nothing is.

    Args:
        servers: see `Servers`; one witness each.
        layout: of the index version that is watched.
    """

    def __init__(self, servers: Servers, layout: Layout) -> None:
        self.wrong: list[str] = []
        self.watches_readers = True
        self._servers = servers
        self._layout = layout
        self._newest: dict[str, Version] = {}
        self._floors: dict[int, Version] = {}
        self._seen: dict[str, int] = {}
        self._highest: dict[Partition, int] = {}
        self._checked: dict[Partition, int] = {}
        servers.redis.on_write = self._written
        servers.redis.on_checkpoint = self._checkpoint
        servers.redis.on_flush = self._flushed
        servers.broker.on_commit = self._committed

    def check(self) -> None:
        assert not self.wrong, "\n".join(self.wrong)

    # ---- Redis

    def _checkpoint(self) -> Callable[[], None]:
        newest, floors = dict(self._newest), dict(self._floors)

        def go_back() -> None:
            self._newest, self._floors = dict(newest), dict(floors)
            self._went_back()

        return go_back

    def _flushed(self) -> None:
        self._newest.clear()
        self._floors.clear()
        self._went_back()

    def _went_back(self) -> None:
        self._seen.clear()
        self._highest.clear()
        self._checked.clear()

    def _written(self, name: str, arguments: Arguments, answer: Any) -> None:
        if name != "FCALL":
            return
        function, key = arguments[1], str(arguments[3])
        if function == "livevec_raise_floor" and answer == 1:
            prefix = f"lv:{self._layout.index}:floor:{{{self._layout.pipeline}."
            if key.startswith(prefix):
                self._floors[int(key.removeprefix(prefix)[:2], 16)] = decode(str(arguments[4]))
        elif function in _CHANGES_A_DOCUMENT and key.startswith(self._layout.bookkeeping_prefix):
            identifier = self._layout.identifier(key)
            stored = self._servers.redis.keyspace.hash(key).get(b"v")
            if stored is not None:
                self._newest[identifier] = decode(stored.decode())
            if self.watches_readers and answer != 0:
                self._read(identifier)

    def _read(self, identifier: str) -> None:
        """What a reader finds now, in the order of the states that the row had."""
        _, _, stem = self._layout.keys(identifier)
        hash = self._servers.redis.keyspace.hash(f"{stem}:0")
        found = None if not hash else f"{hash[b'n'].decode()} {hash[b'text'].decode()}"
        states = [
            None,
            *(value for _, value in self._servers.database.model.server.chain.get(int(identifier), ())),
        ]
        before = self._seen.get(identifier, 0)
        at = next((at for at in range(before, len(states)) if states[at] == found), None)
        letters = self._servers.letters.letters
        if found is None and any(letter.document == identifier for letter in letters):
            return  # a row that was refused may leave the index until its dead letter is tried again
        if at is None:
            self.wrong.append(
                f"a reader of {identifier} found {states[before]!r} before, and now {found!r}; the row was {states}"
            )
        else:
            self._seen[identifier] = at

    # ---- Kafka

    def _committed(self, group: str, partition: Partition, offset: int) -> None:
        topic, number = partition
        stored = self._servers.redis.keyspace.hash(positions_key(group, "0")).get(
            f"{topic}/{number}".encode()
        )
        position = -1 if stored is None else int(stored.partition(b":")[2])
        highest = self._highest.get(partition, 0)
        if offset < highest <= position:
            self.wrong.append(f"{partition} was committed up to {highest}, and now up to {offset} again")
        self._highest[partition] = offset
        if position < offset or topic != self._servers.database.topic:
            return
        log = self._servers.broker.logs[partition]
        for at in range(max(self._checked.get(partition, 0), log.first), offset):
            record = log.records[at - log.first]
            if not self._has_effect(partition, at, record):
                self.wrong.append(
                    f"{partition} was committed up to {offset}, and the record at {at} has had no effect: "
                    f"{record.key!r} {record.value!r}"
                )
        self._checked[partition] = offset

    def _has_effect(self, partition: Partition, offset: int, record: Appended) -> bool:
        if record.value is None:
            return True
        envelope = orjson.loads(record.value)
        operation, source = envelope["op"], envelope["source"]
        if operation == "r" or self._is_dead_letter(partition, offset):
            return True
        previous = orjson.loads(source["sequence"])[0]
        era = next((int(value or 0) for name, value in record.headers if name == ERA_HEADER), 0)
        xid = widen_xid(source["txId"], era, source["lsn"], self._servers.database.model.anchors)
        version = LogVersion(era, int(previous or 0), source["lsn"], xid)
        if operation == "t":
            beaten = (floor is not None and not replaces(version, floor) for floor in self._all_floors())
            return previous is None or all(beaten)
        identifier = str(orjson.loads(record.key or b"")["id"])
        bars = [self._newest.get(identifier), self._floors.get(bucket_of(identifier))]
        if previous is None:
            return any(
                bar is not None and (bar.era > era or not isinstance(bar, SnapshotVersion) or bar.sees(xid))
                for bar in bars
            )
        bars += self._refused(identifier)
        return any(bar is not None and not replaces(version, bar) for bar in bars)

    def _refused(self, identifier: str) -> list[Version]:
        """Versions of the changes of a row that were dead-lettered; older ones may have collapsed into them."""
        texts = [
            letter.headers["livevec.version"]
            for letter in self._servers.letters.letters
            if letter.document == identifier
        ]
        return [decode(text) for text in texts if text]

    def _all_floors(self) -> list[Version | None]:
        return [self._floors.get(bucket) for bucket in range(BUCKETS)]

    def _is_dead_letter(self, partition: Partition, offset: int) -> bool:
        place = (partition[0], str(partition[1]), str(offset))
        return any(
            tuple(letter.headers[f"livevec.{name}"] for name in ("topic", "partition", "offset")) == place
            for letter in self._servers.letters.letters
        )
