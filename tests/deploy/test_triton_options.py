"""The options that Triton is started with, held against a real server's."""

import subprocess
import sys
from pathlib import Path

import pytest
from deployed import ROOT, document

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def known() -> str:
    """What `tritonserver --help` says."""
    place = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/pytriton"
    server = ROOT / ".venv-triton" / place / "tritonserver" / "bin" / "tritonserver"
    if not server.is_file():
        pytest.skip("there is no .venv-triton; `make triton` builds it where its wheel can be had")
    done = subprocess.run([server, "--help"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_triton_has_every_option_that_it_is_given(known: str) -> None:
    program, *options = document(ROOT / "docker-compose.yml")["services"]["triton"]["command"]
    assert Path(program).name == "tritonserver"
    assert len(options) > 5
    for option in options:
        assert f"{option.split('=')[0]} " in known.replace("\n", " "), option


def test_triton_serves_where_the_gateway_and_prometheus_look(known: str) -> None:
    for option, port in (("--grpc-port", 8001), ("--metrics-port", 8002), ("--http-port", 8000)):
        _, _, text = known.partition(f"{option} <integer>")
        assert str(port) in text[:200], option
