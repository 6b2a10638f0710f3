"""Triton Inference Server on CPU with the Python backend, from the package nvidia-pytriton."""

import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from daemon.errors import StackError
from deploy.local.servers.base import Command, NotReady, Server, package_folder

MODEL = "text_embedder"


class Triton(Server):
    name = "triton"
    # Loading the model logs nothing, and takes minutes on a loaded machine.
    start_quiet_s_max = 300.0

    @property
    def _shm_prefix(self) -> str:
        return f"livevec_{self.site.home.identity()[:12]}_"

    def prepare(self) -> None:
        # Triton refuses to start over the shared memory that a killed Python stub left behind.
        for path in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
            path.unlink(missing_ok=True)

    def command(self) -> Command:
        ports = self.site.ports
        pytriton = package_folder("pytriton")
        packages = pytriton.parent
        options = {
            "model-repository": self.site.artifacts.models,
            "backend-directory": self.site.artifacts.triton_backends,
            "model-control-mode": "explicit",
            "load-model": MODEL,
            "http-address": "127.0.0.1",
            "http-port": ports["triton_http"],
            "grpc-address": "127.0.0.1",
            "grpc-port": self.port,
            "metrics-address": "127.0.0.1",
            "metrics-port": ports["triton_metrics"],
            "metrics-config": "summary_latencies=true",
            "exit-timeout-secs": 5,
            "backend-config": f"python,shm-region-prefix-name={self._shm_prefix}",
        }
        return Command(
            argv=(
                str(pytriton / "tritonserver" / "bin" / "tritonserver"),
                "--disable-auto-complete-config",
                *(f"--{name}={value}" for name, value in options.items()),
            ),
            environment={
                # The backend's stub embeds an isolated Python: it ignores PYTHONPATH, and finds this
                # environment's packages as that of the first python3 on PATH.
                "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
                "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{shared_libpython().parent}",
            },
        )

    def probe(self) -> None:
        try:
            length = self._infer()
        except InferenceServerException as error:
            raise NotReady(error.message() or str(error)) from error
        if not 0.0 < length < float("inf"):
            raise NotReady(f"{MODEL} gives a vector of length {length}")

    def heal(self) -> str | None:
        """Load the model again if its stub died: it stays `ready` while every inference fails."""
        try:
            self._infer()
        except InferenceServerException as error:
            message = error.message() or ""
            if "Stub process" not in message:
                # Overload or a time-out passes by itself.
                return None
            with grpc.InferenceServerClient(self.address) as client:
                try:
                    client.unload_model(MODEL)
                    client.load_model(MODEL)
                except InferenceServerException as refused:
                    return f"{MODEL} could not be loaded again: {refused.message()}"
            return f"{MODEL} was loaded again, because its process had died"
        return None

    def _infer(self) -> float:
        """Embed a text and return the length of its vector."""
        text = grpc.InferInput("TEXT", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[b"ready?"]], dtype=np.object_))
        with grpc.InferenceServerClient(self.address) as client:
            vector = client.infer(MODEL, [text], client_timeout=5.0).as_numpy("EMBEDDING")
        return 0.0 if vector is None else float(np.linalg.norm(vector))


def shared_libpython() -> Path:
    """Return the shared library of this Python, which Triton's Python backend loads."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    folders = (
        sysconfig.get_config_var("LIBDIR") or "",
        f"/usr/lib/{sysconfig.get_config_var('MULTIARCH') or 'x86_64-linux-gnu'}",
        os.path.join(sys.base_prefix, "lib"),
    )
    for folder in folders:
        path = Path(folder) / name
        if path.is_file():
            return path
    raise StackError(
        f"Triton's Python backend needs {name}, which is in none of {', '.join(dict.fromkeys(folders))}: "
        f"install the Debian package libpython{version}, or a Python that was built with --enable-shared"
    )
