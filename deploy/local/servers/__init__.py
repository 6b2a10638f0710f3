"""The servers of the embedded stack, in the order in which they are shown."""

from deploy.local.servers.base import Server
from deploy.local.servers.connect import Connect
from deploy.local.servers.kafka import Kafka
from deploy.local.servers.postgres import Postgres
from deploy.local.servers.redis import Redis
from deploy.local.servers.temporal import Temporal
from deploy.local.servers.triton import Triton

SERVERS: dict[str, type[Server]] = {
    server.name: server for server in (Postgres, Kafka, Connect, Triton, Redis, Temporal)
}
