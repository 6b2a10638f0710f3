"""A real Triton for one test module, apart from the stack: such tests kill it, stop it and change its models."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from deploy.local import artifacts
from deploy.local.home import silent
from deploy.local.servers.base import package_folder
from deploy.local.servers.triton import shared_libpython
from tests.support.ports import free_ports

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


@dataclass
class TritonServer:
    """Started by `start`, and again after `stop` or `kill` on the same port."""

    folder: Path
    models: Path
    port: int
    options: Sequence[str] = ()
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.folder / f"triton-{self.port}.log"

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), env=_environment(), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        with grpc.InferenceServerClient(self.url) as client:
            while time.monotonic() < deadline and self.process.poll() is None:
                try:
                    if client.is_server_ready():
                        return
                except InferenceServerException:
                    time.sleep(0.02)
        raise RuntimeError(f"Triton did not start; its log:\n{self.log_path.read_text()[-3000:]}")

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._clean()

    def kill(self) -> None:
        """The server and its stubs, at once."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._clean()

    def stub_pids(self) -> list[int]:
        """Processes of models; a model that is being unloaded still has one."""
        return [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and self._is_stub(folder)
        ]

    def _is_stub(self, folder: Path) -> bool:
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return arguments[0].endswith(b"/triton_python_backend_stub") and any(
            argument.startswith(self._shm_prefix.encode()) for argument in arguments
        )

    def load(self, model: str) -> None:
        with grpc.InferenceServerClient(self.url) as client:
            client.load_model(model)

    def unload(self, model: str) -> None:
        """Returns when the model is gone."""
        with grpc.InferenceServerClient(self.url) as client:
            client.unload_model(model)
            deadline = time.monotonic() + START_TIMEOUT_S
            while any(found.state == "UNLOADING" for found in client.get_model_repository_index().models):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{model} is not unloaded after {START_TIMEOUT_S} s")
                time.sleep(0.02)

    def is_loaded(self, model: str) -> bool:
        with grpc.InferenceServerClient(self.url) as client:
            return bool(client.is_model_ready(model))

    def _command(self) -> list[str]:
        backends = artifacts.ensure(artifacts.default_cache(), silent, kafka=False).triton_backends
        http_port, metrics_port = free_ports(2)
        return [
            str(package_folder("pytriton") / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={self.models}",
            f"--backend-directory={backends}",
            "--disable-auto-complete-config",
            f"--grpc-port={self.port}",
            f"--http-port={http_port}",
            f"--metrics-port={metrics_port}",
            "--grpc-address=127.0.0.1",
            "--http-address=127.0.0.1",
            "--exit-timeout-secs=1",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            *self.options,
        ]

    @property
    def _shm_prefix(self) -> str:
        return f"livevec_test_{os.getpid()}_{self.port}_"

    def _clean(self) -> None:
        for path in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
            path.unlink(missing_ok=True)


EXPLICIT = ("--model-control-mode=explicit", "--load-model=text_embedder")


@contextmanager
def triton_server(
    folder: Path, *, models: Path | None = None, options: Sequence[str] = EXPLICIT
) -> Iterator[TritonServer]:
    """Starts Triton and stops it at the end; `models` is the stack's own repository by default."""
    models = models or artifacts.ensure(artifacts.default_cache(), silent, kafka=False).models
    server = TritonServer(folder, models, free_ports(1)[0], options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _environment() -> dict[str, str]:
    libraries = package_folder("pytriton").parent / "nvidia_pytriton.libs"
    return os.environ | {
        # The embedded Python is isolated: it finds this environment by the first python3 on PATH.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": f"{libraries}:{shared_libpython().parent}",
    }
