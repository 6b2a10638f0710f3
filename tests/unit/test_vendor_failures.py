"""Whatever a vendor's client may raise leaves its adapter as a failure class."""

import inspect
from types import ModuleType

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import httpx
import psycopg
import psycopg.errors
import pytest
import redis.exceptions
from confluent_kafka import KafkaError, KafkaException

from daemon.embedding.openai import failures as openai
from daemon.embedding.triton import failures as triton
from daemon.errors import FailureClass, RejectRow, RetryLater, StopPipeline, StopProcess
from daemon.index import connection
from daemon.settings import KafkaSettings
from daemon.source.kafka import failures as kafka
from daemon.source.kafka.dead_letters import DeadLetterProducer
from daemon.source.postgres import failures as postgres


def exceptions(module: ModuleType, base: type[BaseException] = Exception) -> list[type[BaseException]]:
    """Every exception class of a module, each once."""
    classes = {kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, base)}
    return sorted(classes, key=lambda kind: kind.__name__)


def raised(kind: type[BaseException]) -> BaseException:
    """An instance, whatever its class wants to be told."""
    try:
        return kind("said by the vendor")
    except (TypeError, ValueError, IndexError, AttributeError):
        instance = kind.__new__(kind)
        instance.args = ("said by the vendor",)
        return instance


@pytest.mark.parametrize("kind", exceptions(redis.exceptions), ids=lambda kind: kind.__name__)
def test_every_exception_of_redis_leaves_as_a_failure_class(kind: type[Exception]) -> None:
    with pytest.raises(FailureClass), connection.translated():
        raise raised(kind)


@pytest.mark.parametrize(
    "kind",
    [
        redis.exceptions.ConnectionError,
        redis.exceptions.TimeoutError,
        redis.exceptions.ClusterDownError,
        redis.exceptions.RedisClusterException,
        redis.exceptions.SlotNotCoveredError,
        redis.exceptions.MovedError,
        redis.exceptions.TryAgainError,
        OSError,
        TimeoutError,
    ],
    ids=lambda kind: kind.__name__,
)
def test_a_redis_that_is_away_or_moves_its_slots_is_waited_for(kind: type[Exception]) -> None:
    assert isinstance(connection.failure(raised(kind)), RetryLater)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", exceptions(psycopg.errors, psycopg.Error), ids=lambda kind: kind.__name__)
def test_every_exception_of_psycopg_leaves_as_a_failure_class(kind: type[Exception]) -> None:
    with pytest.raises(FailureClass) as caught, postgres.translated("source 'shop'"):
        raise raised(kind)
    assert "source 'shop'" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.OperationalError("connection refused"), RetryLater),
        (psycopg.InterfaceError("the connection is closed"), RetryLater),
        (psycopg.ProgrammingError('missing "=" in connection info string'), StopPipeline),
        (psycopg.NotSupportedError("pipeline mode"), StopPipeline),
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), StopPipeline),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_an_error_without_a_state_is_waited_for_only_where_waiting_helps(
    error: psycopg.Error, expected: type[FailureClass]
) -> None:
    assert type(postgres.failure(error, "source 'shop'")) is expected


def test_a_key_that_psycopg_cannot_send_is_the_fault_of_its_row() -> None:
    with pytest.raises(StopPipeline) as caught, postgres.translated("source 'shop'"):
        raise psycopg.DataError("a value with NUL")
    assert "NUL" not in str(caught.value)
    assert isinstance(postgres.refusal_of_read(caught.value), RejectRow)


CODES = sorted({code for code in vars(KafkaError).values() if isinstance(code, int)})


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_of_kafka_leaves_as_a_failure_class(code: int) -> None:
    with (
        pytest.raises(FailureClass, match="Kafka does not answer"),
        kafka.translated("Kafka does not answer"),
    ):
        raise KafkaException(KafkaError(code))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, kafka.RecordTooLarge),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, StopProcess),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, StopProcess),
        (KafkaError._INVALID_ARG, StopProcess),
        (KafkaError._ALL_BROKERS_DOWN, RetryLater),
        (KafkaError._MSG_TIMED_OUT, RetryLater),
    ],
)
def test_kafka_is_waited_for_only_where_waiting_helps(code: int, expected: type[FailureClass]) -> None:
    assert type(kafka.failure(KafkaError(code), "Kafka did not take a letter")) is expected


def test_the_table_of_status_codes_names_every_one_of_grpc() -> None:
    assert set(triton.CAUSE_BY_CODE) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


@pytest.mark.parametrize(
    "error",
    [
        *(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata()) for code in grpc.StatusCode),
        grpc.RpcError(),
        grpc.aio.UsageError("the channel is closed"),
        grpc.aio.InternalError("said by the vendor"),
    ],
    ids=lambda error: error.code().name if hasattr(error, "code") else type(error).__name__,
)
def test_every_exception_of_grpc_is_caught_and_leaves_as_a_failure_class(error: Exception) -> None:
    assert isinstance(error, triton.VENDOR_ERRORS)
    cause = triton.cause_of(error)
    assert isinstance(triton.failure_of(cause, texts=2, model_alive=False, where="m"), FailureClass)


@pytest.mark.parametrize("kind", exceptions(httpx), ids=lambda kind: kind.__name__)
def test_every_exception_of_httpx_is_caught_and_leaves_as_a_failure_class(kind: type[Exception]) -> None:
    error = raised(kind)
    assert isinstance(error, openai.VENDOR_ERRORS)
    failure = openai.failure_of_error(error)
    assert isinstance(openai.failure_class(failure, texts=2, where="m"), FailureClass)


async def test_a_letter_that_librdkafka_does_not_take_is_told_from_a_kafka_that_is_away() -> None:
    producer = DeadLetterProducer(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    with pytest.raises(kafka.RecordTooLarge, match="letters"):
        await producer.send("letters", b"key", b"x" * 2_000_000, {})


def test_a_producer_that_is_configured_wrongly_says_what_to_correct() -> None:
    settings = KafkaSettings(bootstrap_servers="127.0.0.1:1", client={"security.protocol": "none"})
    with pytest.raises(StopProcess, match=r"\[kafka\] client"):
        DeadLetterProducer(settings)
