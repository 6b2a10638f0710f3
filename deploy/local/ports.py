"""The ports that the stack listens on: fixed by the user, remembered, or free ones."""

import random
import socket
from collections.abc import Mapping

from daemon.errors import StackError

NAMES = (
    "postgres",
    "kafka",
    "kafka_controller",
    "connect",
    "triton",
    "triton_http",
    "triton_metrics",
    "redis",
    "temporal",
    "temporal_http",
    "temporal_ui",
    "temporal_metrics",
    "metrics",
    "worker_metrics",
    "worker_sdk_metrics",
)
OUTSIDE = frozenset(("metrics", "worker_metrics", "worker_sdk_metrics"))
"""The ports of the daemon and the worker, which may outlive a stack and hold their ports already."""

# Below the kernel's ephemeral range: while a server is down, no client's outgoing connection can take its port.
CHOICE = range(20_000, 32_000)


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        # A server's own closed connections (TIME_WAIT) do not make its port taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def check_names(ports: Mapping[str, int]) -> None:
    for name, port in ports.items():
        if name not in NAMES:
            raise StackError(f"there is no port {name!r}; ports that can be fixed: {', '.join(NAMES)}")
        if not 0 < port < 65_536:
            raise StackError(f"the port of {name} must be 1 to 65535, not {port}")


def choose(fixed: Mapping[str, int], remembered: Mapping[str, int]) -> dict[str, int]:
    """Choose one port for every name.

    A remembered port that another process has taken meanwhile is replaced; those of `OUTSIDE` may be taken.

    Raises:
        StackError: a fixed port is taken or given twice.
    """
    chosen: dict[str, int] = {}
    for name, port in fixed.items():
        if port in chosen.values():
            raise StackError(f"port {port} is given twice; give {name} another one")
        if name not in OUTSIDE and not is_free(port):
            raise StackError(
                f"port {port}, fixed for {name}, is taken by another process; "
                f"free it, or change or remove {name} under [local.ports]"
            )
        chosen[name] = port
    for name in NAMES:
        if name in chosen:
            continue
        port = remembered.get(name, 0)
        if port in chosen.values() or not (port and (name in OUTSIDE or is_free(port))):
            port = _free(set(chosen.values()) | set(remembered.values()))
        chosen[name] = port
    return chosen


def _free(taken: set[int]) -> int:
    candidates = random.SystemRandom().sample(CHOICE, len(CHOICE))
    for port in candidates:
        if port not in taken and is_free(port):
            return port
    raise StackError(f"no free port from {CHOICE.start} to {CHOICE.stop}; end some listening processes")
