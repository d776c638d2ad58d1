"""How long the gateway takes from its command to ready, and what memory it has when idle.

python benchmarks/serving/cold_start.py
"""

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import time

import psutil
from servers import ROOT, free_port
from verdict import Verdict, conclude

IDLE_S = 3.0
LIMIT_S = 60.0


def start_once() -> tuple[float, float]:
    """Seconds from the command to 200 of /readyz, and megabytes of memory IDLE_S later."""
    port = free_port()
    command = [sys.executable, "-m", "singlepass", "serve", "--model", "shapes"]
    command += ["--repository", str(ROOT / "model_repository"), "--port", str(port)]
    begun = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"SINGLEPASS_LOG_LEVEL": "warning"},
        stdout=subprocess.DEVNULL,
    )
    try:
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() - begun > LIMIT_S:
                sys.exit(f"{' '.join(command)} did not get ready")
            time.sleep(0.01)
        took = time.monotonic() - begun
        time.sleep(IDLE_S)
        return took, psutil.Process(process.pid).memory_info().rss / 1e6
    finally:
        process.terminate()
        process.wait()


def is_ready(port: int) -> bool:
    """Whether /readyz says so now."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found = [start_once() for _ in range(args.rounds)]
    print("ready after", ", ".join(f"{seconds:.2f} s" for seconds, _ in found))
    return conclude(
        [
            Verdict("start to ready, median", statistics.median(s for s, _ in found), 3, " s"),
            Verdict("memory when idle, largest", max(mb for _, mb in found), 350, " MB"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
