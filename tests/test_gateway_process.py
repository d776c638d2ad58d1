"""`distill serve` and `distill generate` as processes of their own: no training library in them."""

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

# Runs a command, then names on the last line which of these libraries it has loaded.
WATCHED = """
import json, os, sys, singlepass
leave = os._exit
def watched(status):
    loaded = {"torch", "diffusers", "transformers", "onnx", "safetensors", "distill", "export"}
    print(json.dumps(sorted(loaded & sys.modules.keys())), flush=True)
    leave(status)
os._exit = watched  # by which the gateway leaves
watched(singlepass.main(sys.argv[1:]))
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", WATCHED, *map(str, arguments)]


@contextmanager
def served(repository: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway on a free port, and its address, as it prints it."""
    options = ["--repository", repository, "--port", "0", "--threads", "1", "--drain-s", "5"]
    process = subprocess.Popen(
        command("serve", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"serving tiny/1 \(64x64\) on (http://\S+)", line)
        assert found, line or process.communicate()[1]
        process.stdout.readline()  # the curl line
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def test_serve_answers_drains_and_never_loads_a_training_library(tiny_export) -> None:
    with served(tiny_export.repository) as (process, url):
        answer = httpx.post(f"{url}/generate", json={"prompt": "a red circle", "seed": 3})
        assert answer.status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert np.asarray(Image.open(io.BytesIO(answer.content))).std() > 5
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == []


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_generate_never_loads_a_training_library(tiny_export, tmp_path, suffix) -> None:
    out = tmp_path / f"a.{suffix}"
    options = ["--repository", tiny_export.repository, "--threads", "1", "--seed", "3"]
    done = subprocess.run(
        command("generate", "a red circle", "-o", out, *options),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    with Image.open(out) as picture:
        assert picture.size == (64, 64)


def test_the_command_line_itself_loads_nothing_heavy() -> None:
    code = "import sys, singlepass; print(len({'torch', 'numpy', 'fastapi'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
