"""A real Triton server as a process of its own, from the environment that `make triton` builds."""

import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

ENVIRONMENT = Path(__file__).parents[2] / ".venv-triton"
SHARED = "tested-triton-"
START_S = 60.0
STOP_S = 20.0


class DidNotStartError(Exception):
    """The server left, or was not ready in time; the message is its log."""


@dataclass(frozen=True)
class Server:
    """A running server: where it answers, and what it has said so far."""

    repository: Path
    client: triton.InferenceServerClient
    url: str
    log_file: Path
    process: subprocess.Popen[bytes]

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def load(self, model: str) -> None:
        """Load a model as it lies in the repository now; every version that is served is ready."""
        self.client.load_model(model)

    def kill(self) -> None:
        """End it at once, with the processes of its back ends, as when its machine dies."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all of its processes, then let them go on."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def refusal(self, model: str) -> str:
        """What the server says when it cannot load the model."""
        try:
            self.load(model)
        except InferenceServerException as error:
            return str(error.message())
        raise AssertionError(f"the server loaded {model}")


def why_not() -> str | None:
    """The reason why no server can be started here, or None."""
    if not (ENVIRONMENT / "installed").is_file():
        return "there is no .venv-triton; `make triton` builds it where its wheel can be had"
    linked = subprocess.run(
        ["ldd", _home() / "backends" / "python" / "triton_python_backend_stub"],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    missing = [line.split()[0] for line in linked.stdout.splitlines() if "not found" in line]
    return f"Triton's Python stub needs {', '.join(missing)}" if missing else None


@contextmanager
def running(
    repository: Path, log_file: Path, *options: str, port: int | None = None
) -> Iterator[Server]:
    """Start with gRPC on `port`, or on a free one, wait until ready, stop at the end."""
    http, grpc = free_port(), port or free_port()
    command = [
        _home() / "bin" / "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={_home() / 'backends'}",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        f"--backend-config=python,shm-region-prefix-name={SHARED}{grpc}-",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--allow-metrics=false",
        "--allow-gpu-metrics=false",
        "--exit-timeout-secs=5",
        "--disable-auto-complete-config",  # our configs are complete
        *options,
    ]
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=_environment(), start_new_session=True
        )
    url = f"127.0.0.1:{grpc}"
    try:
        _wait_for_port(process, grpc, log_file)
        with triton.InferenceServerClient(url) as client:
            _wait_until_ready(process, client, log_file)
            yield Server(repository, client, url, log_file, process)
    finally:
        _stop(process)
        for left in Path("/dev/shm").glob(f"{SHARED}{grpc}-*"):  # by a server that was killed
            left.unlink()


def _home() -> Path:
    """The folder of the server in the environment's site-packages."""
    return _site_packages() / "pytriton" / "tritonserver"


def _site_packages() -> Path:
    return next((ENVIRONMENT / "lib").glob("python3.*")) / "site-packages"


def _environment() -> dict[str, str]:
    """Nothing of ours but one thread per call; the Python back end finds its own environment."""
    libraries = [str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(_site_packages()),
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
    for _ in _attempts(process, log_file):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return


def _wait_until_ready(
    process: subprocess.Popen[bytes], client: triton.InferenceServerClient, log_file: Path
) -> None:
    for _ in _attempts(process, log_file):
        if client.is_server_ready():
            return


def _attempts(process: subprocess.Popen[bytes], log_file: Path) -> Iterator[None]:
    """Ten a second, until the process has left or the time is over."""
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        yield
        time.sleep(0.1)
    raise DidNotStartError(log_file.read_text(errors="replace"))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
