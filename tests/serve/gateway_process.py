"""A real gateway in a process of its own, on the tiny model, and figures of that process."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
RUN = "import sys, singlepass; sys.exit(singlepass.main(sys.argv[1:]))"
# 100 ms a picture, and in a batch still more
SLOW_MODEL = """
import time
from serve.backend_ort import OrtBackend
whole = OrtBackend.run
OrtBackend.run = lambda backend, rows: (
    time.sleep(0.1 * len(rows) ** 1.5), whole(backend, rows)
)[1]
"""
IMPATIENT = """
from serve import connection
connection.HEAD_S = connection.TAKE_S = 0.6
connection.LINGER_S = 0.2
"""


@dataclass(frozen=True)
class Running:
    """A gateway that listens; `log` is the file that its standard error goes to."""

    process: subprocess.Popen
    url: str
    log: Path | None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def rss_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of that name with these labels."""
        text = httpx.get(f"{self.url}/metrics").raise_for_status().text
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return sum(
            s.value for s in samples if s.name == name and labels.items() <= s.labels.items()
        )


def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for it, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


@contextmanager
def gateway(
    repository: Path, *options: object, prepare: str = "", log: Path | None = None, **popen: object
) -> Iterator[Running]:
    """`distill serve` on a free port; `prepare` is run in it before. Killed in the end."""
    written = log or Path(tempfile.mkstemp(prefix="gateway", suffix=".log")[1])
    serve = ["serve", "--repository", repository, "--port", 0, "--threads", 1, *options]
    command = [sys.executable, "-c", prepare + RUN, *map(str, serve)]
    environment = {"PYTHONPATH": str(ROOT)} | popen.pop("env", {})
    with written.open("ab") as errors:
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            **popen,
        )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line or (written.read_text() if log is None else "it did not start")
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield Running(process, found[0], None if log else written)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if log is None:
            written.unlink()
