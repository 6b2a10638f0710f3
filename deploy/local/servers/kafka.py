"""Kafka: one KRaft node, broker and controller in one process."""

import shutil
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from daemon.errors import StackError
from deploy.local.servers import java
from deploy.local.servers.base import Command, NotReady, Server


class Kafka(Server):
    name = "kafka"

    def prepare(self) -> None:
        if not (self.data / "meta.properties").is_file():
            self._format()
        self._properties = self._render(self.data)

    def command(self) -> Command:
        return Command(
            java.command_line(self.site.artifacts, "kafka.Kafka", str(self._properties), heap_mb_max=256)
        )

    def probe(self) -> None:
        # Without a log level of 0, librdkafka writes a line per refused connection to stderr.
        settings: dict[str, str | int | float | bool] = {
            "bootstrap.servers": self.address,
            "reconnect.backoff.max.ms": 100,
            "log_level": 0,
        }
        try:
            metadata = AdminClient(settings).list_topics(timeout=2.0)
        except KafkaException as error:
            raise NotReady(str(error)) from error
        if metadata.controller_id not in metadata.brokers:
            raise NotReady("the broker is not registered with the controller yet")

    def _render(self, data: Path) -> Path:
        return self.render(
            "server.properties",
            port=self.port,
            controller_port=self.site.ports["kafka_controller"],
            data=data,
        )

    def _format(self) -> None:
        partial = self.data.with_name(self.data.name + ".partial")
        for folder in (partial, self.data):
            shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir(parents=True)
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # An id that starts with a dash would be read as an option.
        arguments = ("format", f"--cluster-id={cluster}", "-c", str(self._render(partial)))
        argv = java.command_line(self.site.artifacts, "kafka.tools.StorageTool", *arguments, heap_mb_max=256)
        result = self.run_tool(Command(argv))
        if result.returncode:
            raise StackError(f"Kafka's storage could not be formatted: {result.stdout.strip()[-2000:]}")
        partial.rename(self.data)
