"""The servers under test: how each is started, asked and stopped."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from asks import triton_picture
from load import Ask, Target, closed_loop

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
ROOT = HERE.parents[1]
PEERS_BIN = ROOT / ".venv-peers" / "bin"
TRITON_ENVIRONMENT = ROOT / ".venv-triton"
RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
START_S = 60.0
STOP_S = 15.0


class DidNotStartError(Exception):
    """The server left, or gave no right picture in time; the message ends with its log."""


@dataclass(frozen=True)
class Server:
    """A kind of server. In its command, {model} and {port} stand for what is served, and where."""

    name: str
    command: tuple[str, ...]
    folder: Path = HERE
    variables: Mapping[str, str] = field(default_factory=dict)
    triton: bool = False


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    target: Target
    process: psutil.Process
    started_s: float  # from its start to its first right picture

    def memory_bytes(self) -> int:
        """Resident memory of all its processes, without what they share counted twice (PSS)."""
        return sum(_pss(process) for process in (self.process, *self.process.children(True)))


def _python(*path: str, peers: bool = True) -> tuple[str, ...]:
    python = str(PEERS_BIN / "python") if peers else sys.executable
    return (python, str(PEERS.joinpath(*path)), "{model}", "{port}")


def all_servers() -> list[Server]:
    """Ours first."""
    return [
        Server("singlepass", _python("gateway", "server.py", peers=False)),
        Server("FastAPI", _python("bare_fastapi", "server.py")),
        Server("LitServe", _python("lit_serve", "server.py")),
        Server(
            "BentoML",
            (
                str(PEERS_BIN / "bentoml"),
                "serve",
                "service:Pictures",
                "--host=127.0.0.1",
                "--port={port}",
            ),
            PEERS / "bento",
            {"MODEL": "{model}", "BENTOML_DO_NOT_TRACK": "1"},
        ),
        Server("Ray Serve", _python("ray_serve", "server.py"), variables=RAY),
        Server(
            "Ray Serve (HAProxy)",
            _python("ray_serve", "server.py"),
            variables=RAY
            | {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"},
        ),
        _triton(),
    ]


def _triton() -> Server:
    """Triton as a peer; its Python back end takes the rest from the peers' packages."""
    server = triton(PEERS / "triton_alone" / "repository", "--allow-grpc=false")
    packages = _site_packages(ROOT / ".venv-peers")
    return replace(server, variables={**server.variables, "PEERS_PATH": f"{PEERS}:{packages}"})


def triton(repository: Path, *options: str) -> Server:
    """The server of `make triton`, asked over HTTP at {port}."""
    packages = _site_packages(TRITON_ENVIRONMENT)
    home = packages / "pytriton" / "tritonserver"
    command = (
        str(home / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={home / 'backends'}",
        "--model-control-mode=explicit",
        "--load-model={model}",
        "--http-port={port}",
        "--http-address=127.0.0.1",
        "--allow-metrics=false",
        "--allow-gpu-metrics=false",
        "--exit-timeout-secs=3",
        "--disable-auto-complete-config",
        *options,
    )
    libraries = f"{sys.base_prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}"
    variables = {
        "PATH": f"{TRITON_ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "LD_LIBRARY_PATH": libraries.rstrip(":"),
    }
    return Server("Triton", command, variables=variables, triton=True)


def _site_packages(environment: Path) -> Path:
    return next((environment / "lib").glob("python3.*"), environment) / "site-packages"


def missing(server: Server) -> str | None:
    """What has to be run before the server can be started, or None."""
    if server.triton and not (TRITON_ENVIRONMENT / "installed").is_file():
        return "run `make triton`"
    if not (PEERS_BIN / "python").exists():  # plots need it as well
        return "run benchmarks/serving/install_peers"
    return None


@contextmanager
def running(server: Server, model: str, ask: Ask) -> Iterator[Running]:
    """Start it, wait for its first right picture, stop it with all that it started."""
    port = free_port()
    names = {"model": model, "port": str(port)}
    command = [part.format(**names) for part in server.command]
    added = {key: value.format(**names) for key, value in server.variables.items()}
    target = Target(port, triton_picture) if server.triton else Target(port)
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        process = psutil.Popen(
            command,
            cwd=server.folder,
            env=os.environ | added,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while not asyncio.run(_answers(target, ask)):
                if process.poll() is not None or time.monotonic() - start > START_S:
                    log.seek(0)
                    raise DidNotStartError(log.read().decode(errors="replace")[-3000:])
                time.sleep(0.02)
            yield Running(target, process, time.monotonic() - start)
        finally:
            _stop(process)


async def _answers(target: Target, ask: Ask) -> bool:
    """Whether it gives a right picture now."""
    try:
        async with asyncio.timeout(5):
            load = await closed_loop(target, [ask], 1, 0.1)
    except (OSError, TimeoutError):
        return False
    return load.good.count > 0


def _stop(process: psutil.Popen) -> None:
    """SIGTERM, then SIGKILL for what is left of its family."""
    family = [process, *process.children(True)] if process.is_running() else [process]
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):  # killed below
        process.wait(STOP_S)
    for member in family:
        if member.is_running():
            member.kill()
    psutil.wait_procs(family, timeout=STOP_S)


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
