"""Dead letters are read as they were written, and what is gone is told from what is there."""

import time
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from daemon.core.change import Operation
from daemon.core.version import LogVersion
from daemon.core.work import Refusal
from daemon.errors import LivevecError, RejectRow
from daemon.settings import KafkaSettings
from daemon.source.kafka.dead_letter_reader import read_committed, read_letters, read_records
from daemon.source.kafka.dead_letters import DeadLetterProducer, DeadLetterTopic
from daemon.source.record import Coordinates, Record
from deploy.local.stack import Stack

REFUSED = RejectRow("the text is too long; shorten the column", "oversized_text")
VERSION = LogVersion(0, 10, 20, 30)


class Letters:
    """A dead-letter topic of its own, with one partition."""

    def __init__(self, stack: Stack) -> None:
        servers = stack.addresses().kafka_bootstrap_servers
        self.settings = KafkaSettings(bootstrap_servers=servers, group_id=uuid.uuid4().hex)
        self.topic = f"{uuid.uuid4().hex[:8]}.livevec.dead_letters"
        self.admin = AdminClient({"bootstrap.servers": servers})
        for created in self.admin.create_topics([NewTopic(self.topic, 1, 1)]).values():
            created.result()
        self._producer = DeadLetterProducer(self.settings)

    async def put(
        self, refusal: Refusal, *, keep_bytes: bool = False, key_columns: tuple[str, ...] = ()
    ) -> None:
        topic = DeadLetterTopic(self._producer, self.topic, "p", keep_bytes, key_columns)
        await topic.put(refusal, REFUSED)

    def forget_before(self, offset: int) -> None:
        """As retention does."""
        for deleted in self.admin.delete_records([TopicPartition(self.topic, 0, offset)]).values():
            deleted.result()

    def close(self) -> None:
        self._producer.close()
        for deleted in self.admin.delete_topics([self.topic]).values():
            deleted.exception()


@pytest.fixture
def letters(stack: Stack) -> Iterator[Letters]:
    letters = Letters(stack)
    try:
        yield letters
    finally:
        letters.close()


def live(identifier: str) -> Refusal:
    """A change of the log that was refused."""
    record = Record("shop.t", 3, 7, b'{"id":1}', b"a row's text", (), 50.0, 51.0)
    return Refusal(identifier, Operation.UPSERT, VERSION, 49.0, record)


def from_table(identifier: str) -> Refusal:
    """A row that a backfill read; it has no record."""
    return Refusal(identifier, Operation.REREAD, None, 49.0)


async def test_a_dead_letter_is_read_as_it_was_written_without_the_text_of_the_row(letters: Letters) -> None:
    before_s = time.time()
    await letters.put(live("1"))
    [letter] = read_letters(letters.settings, letters.topic, 10).letters
    assert (letter.name, letter.reason, letter.message) == ("1", REFUSED.reason, str(REFUSED))
    assert (letter.version, letter.operation, letter.committed_at_s) == (VERSION.encode(), "upsert", 49.0)
    assert letter.record == Coordinates("shop.t", 3, 7)
    assert letter.place == Coordinates(letters.topic, 0, 0)
    assert letter.value is None
    assert before_s - 1 < letter.dead_lettered_at_s < time.time() + 1


async def test_the_bytes_are_there_where_they_are_kept(letters: Letters) -> None:
    await letters.put(live("1"), keep_bytes=True)
    [letter] = read_letters(letters.settings, letters.topic, 10).letters
    assert letter.value == b"a row's text"
    assert "a row's text" not in repr(letter)


async def test_a_row_without_a_record_has_the_key_of_its_table(letters: Letters) -> None:
    await letters.put(from_table("a%2Fb/7"), key_columns=("name", "number"))
    [letter] = read_letters(letters.settings, letters.topic, 10).letters
    assert (letter.document, letter.key, letter.record) == ("a%2Fb/7", b'{"name":"a/b","number":"7"}', None)
    assert (letter.version, letter.operation) == ("", "reread")


async def test_the_newest_are_read_and_the_rest_is_counted(letters: Letters) -> None:
    for number in range(5):
        await letters.put(live(str(number)))
    found = read_letters(letters.settings, letters.topic, 2)
    assert ([letter.document for letter in found.letters], found.left_out) == (["3", "4"], 3)
    letters.forget_before(4)
    found = read_letters(letters.settings, letters.topic, 2)
    assert ([letter.document for letter in found.letters], found.left_out) == (["4"], 0)


async def test_a_record_is_read_where_it_is_and_one_that_is_gone_is_none(letters: Letters) -> None:
    for number in range(3):
        await letters.put(live(str(number)))
    letters.forget_before(1)
    places = [Coordinates(letters.topic, 0, offset) for offset in (0, 1, 2, 3)]
    elsewhere = [Coordinates(letters.topic, 5, 0), Coordinates(f"{letters.topic}.none", 0, 0)]
    found = read_records(letters.settings, [*places, *elsewhere])
    assert [None if record is None else record.offset for record in found] == [None, 1, 2, None, None, None]


async def test_what_a_group_has_committed_is_told_and_not_moved(letters: Letters) -> None:
    await letters.put(live("1"))
    assert read_committed(letters.settings, letters.topic) == {0: 0}
    consumer = Consumer(
        {"bootstrap.servers": letters.settings.bootstrap_servers, "group.id": letters.settings.group_id}
    )
    consumer.commit(offsets=[TopicPartition(letters.topic, 0, 1)], asynchronous=False)
    consumer.close()
    read_letters(letters.settings, letters.topic, 10)
    assert read_committed(letters.settings, letters.topic) == {0: 1}


def test_a_topic_that_does_not_exist_is_named(letters: Letters) -> None:
    with pytest.raises(LivevecError, match="never-made"):
        read_letters(letters.settings, "never-made", 10)


async def test_a_record_too_large_for_a_letter_is_named_without_its_bytes(letters: Letters) -> None:
    record = Record("shop.t", 3, 7, b'{"id":1}', b"x" * 2_000_000, (), 50.0, 51.0)
    await letters.put(Refusal("1", Operation.UPSERT, VERSION, 49.0, record), keep_bytes=True)
    [letter] = read_letters(letters.settings, letters.topic, 10).letters
    assert (letter.name, letter.value, letter.record) == ("1", None, Coordinates("shop.t", 3, 7))
    [written] = read_records(letters.settings, [letter.place])
    assert written is not None
    assert dict(written.headers)["livevec.bytes_left_out"] == b"2000000"
