"""The options that Triton is started with, on a real server, confined as in docker-compose.yml."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import httpx
import pytest
from confined import confined
from deployed import ROOT, document
from watched_gateway import eventually, free_port

pytestmark = pytest.mark.triton

SERVICE = document(ROOT / "docker-compose.yml")["services"]["triton"]
PYTHON = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
ENVIRONMENT = ROOT / ".venv-triton"


@pytest.fixture(scope="module")
def server() -> Path:
    """The server's program."""
    folder = ENVIRONMENT / PYTHON / "site-packages" / "pytriton" / "tritonserver"
    if not folder.is_dir():
        pytest.skip("there is no .venv-triton; `make triton` builds it where its wheel can be had")
    return folder / "bin" / "tritonserver"


def test_triton_serves_where_the_gateway_and_prometheus_look(server: Path) -> None:
    said = subprocess.run([server, "--help"], capture_output=True, text=True, check=False)
    known = said.stdout + said.stderr
    for option, port in (("--grpc-port", 8001), ("--metrics-port", 8002), ("--http-port", 8000)):
        _, _, text = known.partition(f"{option} <integer>")
        assert str(port) in text[:200], option


def test_triton_takes_its_options_as_its_user_on_a_root_that_it_cannot_write_to(
    server: Path, tmp_path: Path
) -> None:
    """With a model repository that is empty: this server has no runtime for ONNX."""
    _, *options = SERVICE["command"]
    ports = {kind: free_port() for kind in ("http", "grpc", "metrics")}
    here = [f"--{kind}-port={port}" for kind, port in ports.items()]
    here += [f"--backend-directory={server.parents[1] / 'backends'}", "--allow-gpu-metrics=false"]
    models, root = tmp_path / "models", tmp_path / "root"
    models.mkdir()
    root.mkdir()
    user, _ = SERVICE["user"].split(":")
    mounted = {str(ENVIRONMENT): ENVIRONMENT, "/models": models}
    with confined(root, int(user), mounted, [str(server), *options, *here], environment()) as own:
        eventually(lambda: is_healthy(ports["http"]), 30, "Triton did not get ready")
        assert own.status()["Uid"].split() == [user] * 4
        assert int(own.status()["CapBnd"], 16) == 0
        assert "ro" in own.mounts()["/"]
        assert "nv_" in httpx.get(f"http://127.0.0.1:{ports['metrics']}/metrics").text
        os.kill(own.pid, signal.SIGTERM)
        assert own.process.wait(timeout=30) == 0


def is_healthy(port: int) -> bool:
    """What the Compose file's health check says."""
    _, _, flag, code = SERVICE["healthcheck"]["test"]
    assert flag == "-c"
    try:
        exec(code.replace("8000", str(port)), {})
    except URLError:
        return False
    return True


def environment() -> dict[str, str]:
    """The image's variables, as far as this server needs them."""
    return SERVICE["environment"] | {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ENVIRONMENT / PYTHON / "site-packages"),
        "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib",
    }
