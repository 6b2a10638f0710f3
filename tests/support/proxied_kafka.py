"""A Kafka broker of its own that its clients may reach through a faulty network.

A broker tells its clients where to connect, so a proxy before it is passed by, unless a listener advertises it.
"""

import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.local.artifacts import default_cache, ensure
from deploy.local.home import silent
from deploy.local.servers import java
from deploy.local.servers.base import TEMPLATES
from tests.support.mirrored_table import wait_until
from tests.support.ports import free_ports
from tests.support.tcp_proxy import TcpProxy, tcp_proxy


@dataclass(frozen=True)
class ProxiedKafka:
    """direct: `host:port` without faults; faulty: through `proxy`."""

    direct: str
    faulty: str
    proxy: TcpProxy


@contextmanager
def proxied_kafka(folder: Path) -> Iterator[ProxiedKafka]:
    direct, behind, controller = free_ports(3)
    artifacts = ensure(default_cache(), silent, triton=False)
    with tcp_proxy(f"127.0.0.1:{behind}") as proxy:
        properties = folder / "server.properties"
        properties.write_text(_properties(folder / "kafka", direct, behind, controller, proxy.port))
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        arguments = ("format", f"--cluster-id={cluster}", "-c", str(properties))
        subprocess.run(
            java.command_line(artifacts, "kafka.tools.StorageTool", *arguments, heap_mb_max=256),
            check=True,
            capture_output=True,
        )
        with (folder / "kafka.log").open("wb") as log:
            broker = subprocess.Popen(
                java.command_line(artifacts, "kafka.Kafka", str(properties), heap_mb_max=256),
                stdout=log,
                stderr=log,
            )
            try:
                wait_until(lambda: _answers(f"127.0.0.1:{direct}"), 60, "the broker answers")
                yield ProxiedKafka(f"127.0.0.1:{direct}", f"127.0.0.1:{proxy.port}", proxy)
            finally:
                broker.kill()
                broker.wait()


def _properties(data: Path, direct: int, behind: int, controller: int, proxy: int) -> str:
    text = Template((TEMPLATES / "server.properties").read_text()).substitute(
        port=direct, controller_port=controller, data=data
    )
    for name, listener in (
        ("listeners", f"FAULTY://127.0.0.1:{behind}"),
        ("advertised.listeners", f"FAULTY://127.0.0.1:{proxy}"),
        ("listener.security.protocol.map", "FAULTY:PLAINTEXT"),
    ):
        lines = [line + f",{listener}" if line.startswith(name + "=") else line for line in text.splitlines()]
        text = "\n".join(lines)
    return text


def _answers(address: str) -> bool:
    try:
        admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
        return bool(admin.list_topics(timeout=2).brokers)
    except KafkaException:
        return False
