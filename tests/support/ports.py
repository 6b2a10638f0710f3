"""Ports for the servers and daemons that tests start."""

import random
import socket
from contextlib import ExitStack

CHOICE = range(12_000, 20_000)
"""Below the kernel's ephemeral range, so that no client's outgoing connection takes a port before it is used, and
apart from the ports of the embedded stacks."""


def free_ports(count: int) -> list[int]:
    """Return different ports, each of which was free a moment ago."""
    random_, ports = random.SystemRandom(), list[int]()
    with ExitStack() as held:
        while len(ports) < count:
            port = random_.choice(CHOICE)
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    return ports


def free_port() -> int:
    """Return a port that was free a moment ago."""
    return free_ports(1)[0]
