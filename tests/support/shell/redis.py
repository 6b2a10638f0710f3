"""Redis in memory, as far as the product uses it through `daemon.index.connection.Client`.

The client is redis-py's own, which builds the commands; what it would send over a connection is looked up in
`COMMANDS`. A command that is not there has no meaning here, and the test that needs it fails.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis.exceptions as errors
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from tests.support.ordering.functions_twin import FunctionsTwin, Keyspace
from tests.support.shell.faults import Faults
from tests.support.shell.process import Process

Arguments = tuple[Any, ...]


@dataclass
class SearchIndex:
    """What FT.CREATE was given. `failures`: documents that could not be indexed."""

    arguments: tuple[str, ...]
    failures: int = 0


class RedisServer:
    """What all clients share, and what outlives a process.

    Attributes:
        keyspace: the keys.
        indexes: of the search module.
        aliases: of indexes.
        proven: how often it has told that all writes are on disk.
        on_write: called after each command with its name, its arguments and its answer.
        on_checkpoint: called at each; what it answers is called when Redis goes back there.
        on_flush: called when all keys are gone.
    """

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.keyspace = Keyspace(time.time)
        self.functions = FunctionsTwin(self.keyspace, lambda: str(self.run_id))
        self.has_functions = False
        self.indexes: dict[str, SearchIndex] = {}
        self.aliases: dict[str, str] = {}
        self.run_id = 1
        self.proven = 0
        self.scans = 0
        self.cursors: dict[int, str] = {}
        self.on_write: Callable[[str, Arguments, Any], None] = lambda *_: None
        self.on_checkpoint: Callable[[], Callable[[], None]] = lambda: lambda: None
        self.on_flush: Callable[[], None] = lambda: None

    def client(self, process: Process | None = None) -> "FakeRedis":
        return FakeRedis(self, process or Process())

    def checkpoint(self) -> Callable[[], None]:
        """Keeps the state, as a copy of the append-only file does; calling what it returns goes back to it."""
        go_back, told = self.keyspace.checkpoint(), self.on_checkpoint()
        indexes, aliases, functions = dict(self.indexes), dict(self.aliases), self.has_functions

        def restore() -> None:
            go_back()
            self.indexes, self.aliases, self.has_functions = dict(indexes), dict(aliases), functions
            told()

        return restore

    def flush(self) -> None:
        """FLUSHALL: keys and indexes are gone; the functions stay."""
        self.keyspace.clear()
        self.indexes.clear()
        self.aliases.clear()
        self.on_flush()

    def apply(self, arguments: Arguments) -> Any:
        """Have the effect of a command.

        Raises:
            ResponseError: Redis refuses it.
        """
        name = str(arguments[0]).upper()
        answer = COMMANDS[name](self, arguments[1:])
        self.on_write(name, arguments, answer)
        return answer


class FakeRedis(Redis):  # type: ignore[misc, unused-ignore]
    """A client of a `RedisServer`."""

    def __init__(self, server: RedisServer, process: Process) -> None:
        super().__init__(host="fake.invalid", protocol=3)
        self.server = server
        self.process = process
        self.closed = False

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        del options
        return (await self.send([args], True))[0]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return FakePipeline(self, transaction)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        self.closed = True

    async def send(self, commands: Sequence[Arguments], raise_on_error: bool) -> list[Any]:
        """All commands in one call over the edge."""
        assert not self.closed, "the client was closed"
        self.process.check()

        def apply(count: int | None) -> list[Any]:
            self.process.check()
            answers: list[Any] = []
            for arguments in commands[:count]:
                try:
                    answers.append(self.server.apply(arguments))
                except errors.ResponseError as error:
                    answers.append(error)
            return answers

        def away(sent: bool) -> Exception:
            if sent:
                return errors.TimeoutError("Timeout reading from fake")
            return errors.ConnectionError("Connection refused")

        first = commands[0]
        name = str(first[1]) if str(first[0]) == "FCALL" else str(first[0])
        subject = first[3] if str(first[0]) == "FCALL" else first[1] if len(first) > 1 else ""
        subject = subject if isinstance(subject, str) else ""
        answers = await self.server.faults.call("redis", name, subject[:80], apply, away)
        self.process.check()
        refused = next((answer for answer in answers if isinstance(answer, Exception)), None)
        if raise_on_error and refused is not None:
            raise refused
        return answers


class FakePipeline(Pipeline):  # type: ignore[misc, unused-ignore]
    """Sends its commands as one."""

    def __init__(self, client: FakeRedis, transaction: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)
        self._fake = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = [tuple(arguments) for arguments, _ in self.command_stack]
        self.command_stack = []
        return await self._fake.send(commands, raise_on_error) if commands else []


# ---- the commands, with the answers as redis-py gives them


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else str(value).encode()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _pairs(values: Sequence[Any]) -> dict[bytes, bytes]:
    parts = [_bytes(value) for value in values]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _get(server: RedisServer, args: Arguments) -> Any:
    return server.keyspace.find(_text(args[0]), bytes)


def _set(server: RedisServer, args: Arguments) -> Any:
    key, value, *options = args
    flags = [_text(option).upper() if isinstance(option, str) else option for option in options]
    if "NX" in flags and server.keyspace.there(_text(key)):
        return None
    server.keyspace.set(_text(key), _bytes(value))
    for flag, scale in (("EX", 1.0), ("PX", 1000.0)):
        if flag in flags:
            server.keyspace.expire_in(_text(key), int(flags[flags.index(flag) + 1]) / scale)
    return True


def _delete(server: RedisServer, args: Arguments) -> int:
    return sum(server.keyspace.there(_text(key)) and server.keyspace.remove(_text(key)) for key in args)


def _exists(server: RedisServer, args: Arguments) -> int:
    return sum(server.keyspace.there(_text(key)) for key in args)


def _hset(server: RedisServer, args: Arguments) -> int:
    return server.keyspace.hash_set(_text(args[0]), _pairs(args[1:]))


def _hsetnx(server: RedisServer, args: Arguments) -> int:
    key, name, value = _text(args[0]), _bytes(args[1]), _bytes(args[2])
    return 0 if name in server.keyspace.hash(key) else server.keyspace.hash_set(key, {name: value})


def _hget(server: RedisServer, args: Arguments) -> Any:
    return server.keyspace.hash(_text(args[0])).get(_bytes(args[1]))


def _hmget(server: RedisServer, args: Arguments) -> list[Any]:
    hash = server.keyspace.hash(_text(args[0]))
    names = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    return [hash.get(_bytes(name)) for name in names]


def _hgetall(server: RedisServer, args: Arguments) -> dict[bytes, bytes]:
    return dict(server.keyspace.hash(_text(args[0])))


def _hkeys(server: RedisServer, args: Arguments) -> list[bytes]:
    return list(server.keyspace.hash(_text(args[0])))


def _hdel(server: RedisServer, args: Arguments) -> int:
    return server.keyspace.hash_delete(_text(args[0]), [_bytes(name) for name in args[1:]])


def _hincrby(server: RedisServer, args: Arguments) -> int:
    key, name = _text(args[0]), _bytes(args[1])
    value = int(server.keyspace.hash(key).get(name, b"0")) + int(args[2])
    server.keyspace.hash_set(key, {name: b"%d" % value})
    return value


def _sadd(server: RedisServer, args: Arguments) -> int:
    key = _text(args[0])
    members: set[bytes] = server.keyspace.find(key, set)
    if members is None:
        members = server.keyspace.values[key] = set()
    before = len(members)
    members.update(_bytes(member) for member in args[1:])
    return len(members) - before


def _smembers(server: RedisServer, args: Arguments) -> set[bytes]:
    return set(server.keyspace.find(_text(args[0]), set) or ())


def _scan(server: RedisServer, args: Arguments) -> tuple[int, list[bytes]]:
    """In one sorted sequence, so that what is there from the first page to the last comes exactly once."""
    options = [_text(option) for option in args]
    cursor, pattern, count = int(options[0]), "*", 10
    for name, value in zip(options[1::2], options[2::2], strict=True):
        pattern = value if name == "MATCH" else pattern
        count = int(value) if name == "COUNT" else count
    after = server.cursors.pop(cursor, "")
    # As Redis counts: keys that were looked at, whether they match or not.
    looked_at = [name for name in server.keyspace.names() if name > after]
    page = looked_at[:count]
    matching = [name.encode() for name in server.keyspace.matching(page, pattern)]
    if len(page) == len(looked_at):
        return 0, matching
    server.scans += 1
    server.cursors[server.scans] = page[-1]
    return server.scans, matching


def _fcall(server: RedisServer, args: Arguments) -> Any:
    if not server.has_functions:
        raise errors.ResponseError("Function not found")
    name, count = _text(args[0]), int(args[1])
    keys = [_text(key) for key in args[2 : 2 + count]]
    answer = server.functions.call(name, keys, [_bytes(value) for value in args[2 + count :]])
    return answer if isinstance(answer, list) else int(answer)


def _function_load(server: RedisServer, _: Arguments) -> bytes:
    server.has_functions = True
    return b"livevec"


def _named(server: RedisServer, name: str) -> str:
    index = server.aliases.get(name, name)
    if index not in server.indexes:
        raise errors.ResponseError(f"{name}: no such index")
    return index


def _ft_info(server: RedisServer, args: Arguments) -> dict[bytes, Any]:
    index = _named(server, _text(args[0]))
    documents = sum(key.startswith(f"lv:{index}:doc:") for key in server.keyspace.values)
    return {
        b"index_name": index.encode(),
        b"num_docs": documents,
        b"hash_indexing_failures": server.indexes[index].failures,
        b"percent_indexed": b"1",
    }


def _ft_create(server: RedisServer, args: Arguments) -> bytes:
    name = _text(args[0])
    if name in server.indexes:
        raise errors.ResponseError("Index already exists")
    server.indexes[name] = SearchIndex(tuple(_text(argument) for argument in args[1:]))
    return b"OK"


def _ft_aliasupdate(server: RedisServer, args: Arguments) -> bytes:
    index = _named(server, _text(args[1]))
    server.aliases[_text(args[0])] = index
    return b"OK"


def _ft_dropindex(server: RedisServer, args: Arguments) -> bytes:
    index = _named(server, _text(args[0]))
    del server.indexes[index]
    server.aliases = {alias: named for alias, named in server.aliases.items() if named != index}
    return b"OK"


def _info(server: RedisServer, _: Arguments) -> dict[str, Any]:
    return {"run_id": str(server.run_id)}


def _flushdb(server: RedisServer, _: Arguments) -> bool:
    server.flush()
    return True


def _waitaof(server: RedisServer, _: Arguments) -> list[int]:
    server.proven += 1
    return [1, 0]


COMMANDS: dict[str, Callable[[RedisServer, Arguments], Any]] = {
    "GET": _get,
    "SET": _set,
    "DEL": _delete,
    "EXISTS": _exists,
    "HSET": _hset,
    "HSETNX": _hsetnx,
    "HGET": _hget,
    "HMGET": _hmget,
    "HGETALL": _hgetall,
    "HKEYS": _hkeys,
    "HDEL": _hdel,
    "HINCRBY": _hincrby,
    "SADD": _sadd,
    "SMEMBERS": _smembers,
    "SCAN": _scan,
    "FCALL": _fcall,
    "FUNCTION LOAD": _function_load,
    "FT.INFO": _ft_info,
    "FT.CREATE": _ft_create,
    "FT.ALIASUPDATE": _ft_aliasupdate,
    "FT.DROPINDEX": _ft_dropindex,
    "FLUSHDB": _flushdb,
    "INFO": _info,
    "WAITAOF": _waitaof,
}
