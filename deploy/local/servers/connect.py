"""Kafka Connect with Debezium's PostgreSQL connector."""

import httpx

from deploy.local.servers import java
from deploy.local.servers.base import Command, NotReady, Server

CONNECTOR = "io.debezium.connector.postgresql.PostgresConnector"


class Connect(Server):
    name = "connect"
    needs = ("kafka",)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        self._properties = self.render(
            "connect-worker.properties",
            port=self.port,
            kafka=f"127.0.0.1:{self.site.ports['kafka']}",
            plugins=self.site.artifacts.connect_plugins,
        )

    def command(self) -> Command:
        main = "org.apache.kafka.connect.cli.ConnectDistributed"
        return Command(java.command_line(self.site.artifacts, main, str(self._properties), heap_mb_max=384))

    def probe(self) -> None:
        try:
            plugins = httpx.get(f"{self.address}/connector-plugins", timeout=5.0).raise_for_status().json()
            # Answers only when the worker has joined its group and read its topics.
            httpx.get(f"{self.address}/connectors", timeout=5.0).raise_for_status()
        except httpx.HTTPError as error:
            raise NotReady(str(error)) from error
        if CONNECTOR not in {plugin["class"] for plugin in plugins}:
            raise NotReady(f"Connect did not load {CONNECTOR} from {self.site.artifacts.connect_plugins}")
