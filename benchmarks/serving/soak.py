"""Twenty minutes under load: memory and descriptors of the gateway, and every picture checked.

    python benchmarks/serving/soak.py

Clients come and go: each minute is a load of its own, with connections of its own.
"""

import argparse
import sys
import time

import psutil
import uvloop
from asks import asks, digests
from load import open_loop, poisson
from measure import errors
from servers import all_servers, running
from verdict import Verdict, conclude

CONNECTIONS = 64
SETTLED_MIN = 2  # the first minutes, in which memory may grow


def left_open(process: psutil.Process) -> int:
    """Descriptors, once the gateway has seen that the clients of the minute are gone."""
    found = []
    for _ in range(10):
        time.sleep(0.2)
        found.append(process.num_fds())
    return min(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=20)
    parser.add_argument("--rate", type=float, default=40.0, help="pictures a second")
    args = parser.parse_args()
    requests = asks("shapes", digests("shapes"))
    memory, descriptors, failed, made = [], [], 0, 0
    with running(all_servers()[0], "shapes", requests[0]) as gateway:
        for minute in range(args.minutes):
            arrivals = poisson(args.rate, 60.0, seed=minute)
            load = uvloop.run(open_loop(gateway.target, requests, arrivals, CONNECTIONS))
            failed, made = failed + errors(load), made + load.good.count
            memory.append(gateway.memory_bytes() / 1e6)
            descriptors.append(left_open(gateway.process))
            print(
                f"minute {minute + 1}: {memory[-1]:.1f} MB, {descriptors[-1]} descriptors", end=""
            )
            print(f", median {1e3 * load.good.percentile_s(50):.1f} ms", flush=True)
            if errors(load):
                said = f"answers {dict(load.statuses)}, {load.wrong} wrong"
                print(f"{said}, {load.unanswered} without an answer", flush=True)
    settled = memory[min(SETTLED_MIN, len(memory)) - 1]
    growth = 100 * (memory[-1] / settled - 1)
    print(f"{made} pictures, every one checked")
    return conclude(
        [
            Verdict("growth of memory after the first two minutes", growth, 5, " %"),
            Verdict("growth of open descriptors", descriptors[-1] - descriptors[0], 2),
            Verdict("answers that are not the right picture", failed, 0),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
