"""The gateway as a process of its own, and the real Prometheus that scrapes it."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from deployed import DEPLOY, ROOT, document

START_S = 30.0


def eventually(done: Callable[[], bool], limit_s: float, what: object) -> None:
    """Wait until something holds; fails with `what` when it does not in time."""
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@contextmanager
def stopped_after(process: "subprocess.Popen[str]") -> Iterator[None]:
    """End a process in any case."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def gateway(repository: Path, command: tuple[str, ...] = (), **env: str) -> Iterator[str]:
    """`distill serve` on a free port; its address. `command` is what stands before `serve`."""
    run = command or (sys.executable, "-m", "singlepass")
    options = ["serve", "--port", "0", "--host", "127.0.0.1", "--repository", str(repository)]
    process = subprocess.Popen(
        [*run, *options],
        env=os.environ | {"SINGLEPASS_THREADS": "1", "PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.PIPE,
        text=True,
    )
    with stopped_after(process):
        assert process.stdout is not None
        found = re.search(r"on (http://\S+)", process.stdout.readline())
        assert found, "the gateway did not start; its log says why"
        process.stdout.readline()  # the curl line
        yield found[1]


@contextmanager
def prometheus(program: str, folder: Path, gateway_url: str) -> Iterator[httpx.Client]:
    """Prometheus with our options and configuration, every second, on that gateway; a client."""
    config = document(DEPLOY / "prometheus" / "prometheus.yml")
    config["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), "1s")
    config["global"]["scrape_timeout"] = "1s"
    config["rule_files"] = [str(DEPLOY / "prometheus" / "alerts.yml")]
    port = free_port()
    addresses = {"gateway": gateway_url.removeprefix("http://"), "prometheus": f"127.0.0.1:{port}"}
    for job in config["scrape_configs"]:
        target = addresses.get(job["job_name"], f"127.0.0.1:{free_port()}")  # Triton: nobody there
        job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    places = {"--config.file": "prometheus.yml", "--storage.tsdb.path": "data"}
    given = document(ROOT / "docker-compose.yml")["services"]["prometheus"]["command"]
    pairs = (option.split("=") for option in given)
    options = [f"{name}={folder / places[name] if name in places else v}" for name, v in pairs]
    options += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    process = subprocess.Popen([program, *options], text=True, stderr=subprocess.PIPE)
    with stopped_after(process), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        eventually(lambda: is_ready(client), START_S, "Prometheus did not start")
        yield client


def is_ready(client: httpx.Client) -> bool:
    """Whether Prometheus answers."""
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def ask(client: httpx.Client, expr: str) -> list[dict[str, Any]]:
    """The samples of an expression now; fails where Prometheus refuses it."""
    answer = client.get("/api/v1/query", params={"query": expr})
    assert answer.status_code == 200, f"{expr}: {answer.text}"
    return list(answer.json()["data"]["result"])


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
