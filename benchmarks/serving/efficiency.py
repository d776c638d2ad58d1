"""How much of the machine the gateway leaves to the model: saturation against a bare loop, and p99.

    python benchmarks/serving/efficiency.py

The bare loop draws and encodes with all cores and no server, in the better of two ways: one thread
runs the model on whole batches, with all cores, and others write the PNGs of the batch before; or
each core has a loop of its own. Loop and gateway take turns, so that a slow minute of the machine
hits both. Then the gateway is asked at 70 % of its saturation.
"""

import argparse
import os
import statistics
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

import uvloop
from asks import asks, digests, rows
from load import closed_loop
from measure import latency
from picture import MAX_BATCH, Shapes
from servers import all_servers, running
from verdict import Verdict, conclude

CONNECTIONS = 32
SHARE = 0.7


class Way(NamedTuple):
    """A bare loop: so many at a time, each with calls of so many pictures."""

    loops: int
    batch: int

    def __str__(self) -> str:
        return f"{self.loops} at a time, batches of {self.batch}"


def bare_rate(shapes: Shapes, way: Way, seconds: float) -> float:
    """Pictures per second without a server: tokenise, noise, model, PNG."""
    start = time.perf_counter()
    with ThreadPoolExecutor(way.loops) as loops, ThreadPoolExecutor(os.cpu_count()) as encoders:
        made = loops.map(lambda _: _loop(shapes, way, encoders, start + seconds), range(way.loops))
        return sum(made) / (time.perf_counter() - start)


def _loop(shapes: Shapes, way: Way, encoders: Executor, end: float) -> int:
    """How many pictures it has made; with a core of its own it writes its files itself."""
    asked, made, written = list(rows()), 0, list[Future[bytes]]()
    while time.perf_counter() < end:
        these = [asked[(made + i) % len(asked)] for i in range(way.batch)]
        pictures = shapes.draw([shapes.inputs(*one) for one in these])
        made += way.batch
        for future in written:
            future.result()
        pairs = list(zip(pictures, these, strict=True))
        if way.loops > 1:
            for pixels, one in pairs:
                shapes.png(pixels, *one)
        else:
            written = [encoders.submit(shapes.png, pixels, *one) for pixels, one in pairs]
    for future in written:
        future.result()
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each loop in a round")
    parser.add_argument("--open-seconds", type=float, default=30.0, help="at 70 % of saturation")
    args = parser.parse_args()
    requests, cores = asks("shapes", digests("shapes")), os.cpu_count() or 1
    models = {1: Shapes(), cores: Shapes(threads=1)}
    ways = [Way(loops, batch) for loops in models for batch in (1, 2, 4, MAX_BATCH)]
    way = max(ways, key=lambda one: bare_rate(models[one.loops], one, 2.0))
    bare, served = [], []
    with running(all_servers()[0], "shapes", requests[0]) as gateway:
        uvloop.run(closed_loop(gateway.target, requests, CONNECTIONS, 1.0))
        for _ in range(args.rounds):
            bare.append(bare_rate(models[way.loops], way, args.seconds))
            load = uvloop.run(closed_loop(gateway.target, requests, CONNECTIONS, args.seconds))
            served.append(load.rate)
            print(f"bare loop {bare[-1]:.1f}/s, gateway {load.rate:.1f}/s", flush=True)
        alone = uvloop.run(closed_loop(gateway.target, requests, 1, args.seconds))
        rate = SHARE * statistics.median(served)
        at = latency(gateway, requests, rate, args.open_seconds)
    median_ms = 1e3 * alone.good.percentile_s(50)
    print(f"bare loop: {way}, median {statistics.median(bare):.1f} pictures/s")
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
