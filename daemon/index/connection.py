"""The connection to Redis, and the one place where its errors are translated."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import redis.exceptions as errors
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from daemon.errors import FailureClass, RejectRow, RetryLater, StopProcess
from daemon.settings import RedisSettings

Client = Redis | RedisCluster
Command = Sequence[str | bytes | int]
_SLOTS = 16_384

VENDOR_ERRORS = (
    errors.RedisError,
    # These three are not among redis-py's RedisErrors.
    errors.RedisClusterException,
    errors.ChildDeadlockedError,
    errors.IncorrectPolicyType,
    OSError,
)


class _Cluster(RedisCluster):
    """A cluster client that knows where the keys of FCALL are.

    redis-py asks a node instead, in two round trips for each call that carry its arguments, vectors included.
    """

    async def initialize(self, *arguments: Any, **named: Any) -> Any:
        await super().initialize(*arguments, **named)
        commands = cast(Any, self.commands_parser).commands
        commands["fcall"] = {
            **commands["fcall"],
            "flags": [],
            "first_key_pos": 3,
            "last_key_pos": 3,
            "step_count": 1,
        }
        return self


class IndexMissing(RetryLater):
    """The search index, or the alias, is not there; a running daemon makes it anew."""


class FunctionsMissing(RetryLater):
    """The function library is not there (FLUSHALL, a restored dump): load it, then try again."""


def connect(settings: RedisSettings) -> Client:
    """Return a client that neither retries nor hides a lost connection: the pipeline decides what happens then."""
    url = settings.url.get_secret_value()
    if settings.cluster:
        return _Cluster.from_url(url, socket_timeout=settings.timeout_s, protocol=3)
    return Redis.from_url(
        url,
        socket_timeout=settings.timeout_s,
        socket_connect_timeout=settings.timeout_s,
        max_connections=settings.connections_max,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
    )


async def key_of_each_primary(client: Client, key_of: Callable[[str], str]) -> dict[str, str]:
    """Return, for each primary, a key that it holds: by its name, which is empty for a Redis that is no cluster.

    Args:
        key_of: gives the key of a hash tag; tags are tried until each primary has one.

    Raises:
        FailureClass: no node answers.
    """
    if not isinstance(client, RedisCluster):
        return {"": key_of("0")}
    with translated():
        await client.initialize()
    primaries = {node.name for node in client.get_primaries()}
    keys: dict[str, str] = {}
    for number in range(_SLOTS):
        key = key_of(str(number))
        node = client.get_node_from_key(key)
        if node is not None and node.name in primaries:
            keys.setdefault(node.name, key)
        if len(keys) == len(primaries):
            break
    return keys


@contextmanager
def translated() -> Iterator[None]:
    """Turn redis-py's exceptions into failure classes."""
    try:
        yield
    except VENDOR_ERRORS as error:
        raise failure(error) from error


async def pipelined(client: Client, commands: Iterable[Command], raise_on_error: bool = True) -> list[Any]:
    """Send commands in one go, which is no transaction, and return their replies.

    Args:
        raise_on_error: raise the first error; else the errors stand among the replies, as redis-py's exceptions.

    Raises:
        FailureClass: the connection failed; what was done before is not known.
    """
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)
    with translated():
        return await pipe.execute(raise_on_error=raise_on_error)


def failure(error: Exception) -> FailureClass:
    """Return the failure class of an error that redis-py raised, or gave in place of a reply."""
    text = str(error)
    match error:
        case errors.AuthenticationError() | errors.NoPermissionError() | errors.AuthorizationError():
            return StopProcess(f"Redis refused the user ({text}); check redis.url and its ACL")
        case errors.BusyLoadingError():
            return RetryLater("Redis is loading its data; waiting", 0.25)
        case errors.ReadOnlyError():
            return RetryLater("Redis is a read-only replica; redis.url must lead to the primary", 1.0)
        case errors.OutOfMemoryError():
            return RetryLater("Redis is out of memory; raise maxmemory or free some: nothing is dropped", 1.0)
        case errors.ConnectionError() | errors.TimeoutError() | OSError():
            return RetryLater(f"Redis cannot be reached ({text}); is it up at redis.url?")
        case errors.ClusterError() | errors.TryAgainError() | errors.SlotNotCoveredError():
            return RetryLater(f"the Redis Cluster is not ready ({text}); waiting", 0.25)
        case errors.AskError():  # and MovedError: redis-py has followed it, to a slot that goes on moving
            return RetryLater(f"the Redis Cluster moves its slots ({text}); needs redis.cluster = true", 0.25)
        case errors.CrossSlotTransactionError() | errors.InvalidPipelineStack():
            return StopProcess(f"Redis Cluster refused a call ({text})")
        case errors.RedisClusterException():
            # No node answered, or none told of the others.
            return RetryLater(f"the Redis Cluster cannot be reached ({text}); is it up at redis.url?", 0.25)
        case errors.ResponseError():
            return _response(text)
    return StopProcess(f"Redis answered what livevec does not know ({type(error).__name__}: {text})")


def _response(text: str) -> FailureClass:
    if text.startswith("OOM") or "used memory > 'maxmemory'" in text:
        return RetryLater("Redis is out of memory; raise maxmemory or free some: nothing is dropped", 1.0)
    if "Function not found" in text:
        return FunctionsMissing("the livevec function library is missing in Redis; loading it", 0.0)
    if text.startswith(("LOADING", "MASTERDOWN", "BUSY", "MISCONF", "NOREPLICAS")):
        return RetryLater(f"Redis cannot write now ({text})", 0.5)
    if any(words in text.lower() for words in ("no such index", "unknown index", "index not found")):
        return IndexMissing(f"an index vanished from Redis ({text}); a running daemon makes it anew", 0.25)
    if text.startswith("READONLY"):
        return RetryLater("Redis is a read-only replica; redis.url must lead to the primary", 1.0)
    if "WRONGTYPE" in text or "LIVEVEC malformed version" in text:
        return RejectRow(f"a key of this document holds something else ({text}); remove it", "wrong_type")
    return StopProcess(f"Redis refused a call ({text})")
