"""A PostgreSQL server of its own, for tests that set what a shared one may not have: wal_level, xids, standbys."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from deploy.local.home import Home
from deploy.local.servers.base import Artifacts, Command, Site, launch_line
from deploy.local.servers.postgres import Postgres
from tests.support.ports import free_port
from tests.support.stack_fixture import throwaway_home


class PostgresCluster:
    """Data folder and server; `start` may be called again after `stop` or `kill`, with other settings."""

    def __init__(self, home: Path) -> None:
        nowhere = home / "unused"
        self._home = Home(home)
        self._home.create()
        self.port = free_port()
        site = Site(self._home, {"postgres": self.port}, Artifacts(nowhere, nowhere, nowhere, nowhere))
        self._server = Postgres(site)
        self._process: subprocess.Popen[bytes] | None = None
        self._server.prepare()

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def data(self) -> Path:
        return self._server.data

    def start(self, **settings: str) -> None:
        command = self._server.command()
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        line = launch_line(Command((*command.argv, *options), command.environment, command.privileges))
        log = self._home.log("postgres").open("ab")
        self._process = subprocess.Popen(
            line, env=self._server.environment(command), cwd="/", stdout=log, stderr=log
        )
        log.close()
        end = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.dsn, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < end, self._home.log("postgres").read_text()[-3000:]
                assert self._process.poll() is None, self._home.log("postgres").read_text()[-3000:]
                time.sleep(0.05)

    def stop(self, sig: int = signal.SIGINT) -> None:
        """SIGINT is PostgreSQL's fast shutdown."""
        if self._process is not None:
            self._process.send_signal(sig)
            self._process.wait(30)
            self._process = None

    def tool(self, name: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the server's user; answers its output."""
        command = self._server.command()
        binary = Path(command.argv[0]).with_name(name)
        result = self._server.run_tool(
            Command((str(binary), *arguments), command.environment, command.privileges)
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    def follow(self, primary: "PostgresCluster") -> None:
        """Become a standby of `primary`; to be called while stopped."""
        for path in self.data.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.tool(
            "pg_basebackup", "-D", str(self.data), "-d", primary.dsn, "-R", "-X", "stream", "-c", "fast"
        )

    def connect(self, **settings: Any) -> "psycopg.Connection[Any]":
        return psycopg.connect(self.dsn, **{"autocommit": True, **settings})


@contextmanager
def postgres_cluster(**settings: str) -> Iterator[PostgresCluster]:
    """A running server, gone at the end."""
    with throwaway_home() as home:
        cluster = PostgresCluster(home)
        try:
            cluster.start(**settings)
            yield cluster
        finally:
            cluster.stop()
