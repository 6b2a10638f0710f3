"""confluent-kafka's errors -> failure classes, in this one place."""

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from daemon.errors import FailureClass, RetryLater, StopProcess

_MISSING = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_EXCEPTION,
}
_MISCONFIGURED = {KafkaError._INVALID_ARG, KafkaError._CONFLICT, KafkaError._NOT_IMPLEMENTED}


class RecordTooLarge(StopProcess):
    """A record is larger than the producer or the topic allows."""


def failure(error: KafkaError, what: str) -> FailureClass:
    """Return the failure class of an error.

    Args:
        what: what was asked of Kafka, for the message: `Kafka did not take a dead letter`.
    """
    code, said = error.code(), f"{what} ({error.str()})"
    if code in _MISSING:
        return StopProcess(f"{said}: the topic does not exist; `livevec connector apply` creates it")
    if code in _TOO_LARGE:
        return RecordTooLarge(
            f"{said}; raise the topic's max.message.bytes and message.max.bytes of [kafka] client"
        )
    if code in _FORBIDDEN:
        return StopProcess(f"{said}; grant the user read and write on the topic, and read on the group")
    if code in _MISCONFIGURED:
        return StopProcess(f"{said}; correct [kafka] client")
    if error.fatal():
        return StopProcess(f"{said}: librdkafka cannot go on; start the process again")
    return RetryLater(f"{said}; is Kafka up?", 0.5)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise the failure class of any KafkaException inside."""
    try:
        yield
    except KafkaException as error:
        raise failure(error.args[0], what) from error
