"""How much of the machine the gateway leaves to the model: saturation against a bare loop, and p99.

    python benchmarks/serving/efficiency.py

The bare loop draws and encodes with all cores and no server: one thread runs the model on whole
batches, others write the PNGs of the batch before. Loop and gateway take turns, so that a slow
minute of the machine hits both. Then the gateway is asked at 70 % of its saturation.
"""

import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import uvloop
from asks import asks, digests, rows
from load import closed_loop
from measure import latency
from picture import MAX_BATCH, Shapes
from servers import all_servers, running
from verdict import Verdict, conclude

CONNECTIONS = 32
SHARE = 0.7


def bare_rate(shapes: Shapes, batch: int, seconds: float) -> float:
    """Pictures per second without a server: tokenise, noise, model, PNG."""
    asked, made, start = list(rows()), 0, time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as encoders:
        written: list[object] = []
        while time.perf_counter() - start < seconds:
            these = [asked[(made + i) % len(asked)] for i in range(batch)]
            pictures = shapes.draw([shapes.inputs(*one) for one in these])
            for future in written:
                future.result()
            written = [
                encoders.submit(shapes.png, pixels, *one)
                for pixels, one in zip(pictures, these, strict=True)
            ]
            made += batch
        for future in written:
            future.result()
        return made / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each loop in a round")
    parser.add_argument("--open-seconds", type=float, default=30.0, help="at 70 % of saturation")
    args = parser.parse_args()
    requests, shapes = asks("shapes", digests("shapes")), Shapes()
    batches = {batch: bare_rate(shapes, batch, 1.0) for batch in (1, 2, 4, MAX_BATCH)}
    batch = max(batches, key=lambda one: batches[one])
    bare, served = [], []
    with running(all_servers()[0], "shapes", requests[0]) as gateway:
        uvloop.run(closed_loop(gateway.target, requests, CONNECTIONS, 1.0))
        for _ in range(args.rounds):
            bare.append(bare_rate(shapes, batch, args.seconds))
            load = uvloop.run(closed_loop(gateway.target, requests, CONNECTIONS, args.seconds))
            served.append(load.rate)
            print(f"bare loop {bare[-1]:.1f}/s, gateway {load.rate:.1f}/s", flush=True)
        alone = uvloop.run(closed_loop(gateway.target, requests, 1, args.seconds))
        rate = SHARE * statistics.median(served)
        at = latency(gateway, requests, rate, args.open_seconds)
    median_ms = 1e3 * alone.good.percentile_s(50)
    print(f"bare loop: batches of {batch}, median {statistics.median(bare):.1f} pictures/s")
    print(f"gateway: median {statistics.median(served):.1f} pictures/s; one at a time", end=" ")
    print(f"{median_ms:.2f} ms; at {rate:.1f}/s median {at.median_ms:.2f}, p99 {at.p99_ms:.2f} ms")
    share = statistics.median(ours / theirs for ours, theirs in zip(served, bare, strict=True))
    return conclude(
        [
            Verdict("saturation against the bare loop", share, 0.9, "x", at_least=True),
            Verdict("p99 at 70 % against the unloaded median", at.p99_ms / median_ms, 2.5, "x"),
            Verdict("answers that are not the right picture", at.errors, 0),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
