"""What the gateway costs before Triton: throughput and latency beside the same Triton alone.

    python benchmarks/serving/behind_triton.py
    python benchmarks/serving/behind_triton.py --together
    python benchmarks/serving/behind_triton.py --queue-policy

One Triton with the shapes model on ONNX Runtime is asked for the same pictures in four ways that
take turns: directly over gRPC, directly over HTTP, and through the gateway as raw pixels and as
PNG. It has one processor for itself, and gateway and load generator have the others, as if it were
a machine of its own; with `--together` all share all processors.

Its queue has no policy (limits of size and time): with one, Triton sometimes leaves a lone request
lying for half a second, which hides what is measured. `--queue-policy` leaves the config as it is.
"""

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from operator import sub
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import uvloop
from asks import COUNT, asks
from load import Load, closed_loop
from measure import CLOSED, cpu_s, errors, latency
from picture import REPOSITORY
from servers import ROOT, TRITON_ENVIRONMENT, Running, Server, free_port, running, triton
from tensors import digest_of, draw, grpc_ask, grpc_loop, http_ask
from verdict import Verdict, conclude

from export.repository.triton_config import FILE, parse, to_text

MODEL = "shapes"
SHARE = 0.7
DIRECT = ("Triton, gRPC", "Triton, HTTP")
RAW, PNG = "gateway, raw", "gateway, PNG"


class Way(NamedTuple):
    """A way to ask: for the closed loop, and for the open one where the generator has it."""

    closed: Callable[[int, float], Coroutine[None, None, Load]]
    server: Running | None
    requests: Sequence[Any]


@dataclass
class Found:
    """What was found of one way, round after round; `cost_ms` of Triton, gateway, generator."""

    width: int
    trial: float  # pictures per second before the rounds
    rates: list[float] = field(default_factory=list)
    alone_ms: list[float] = field(default_factory=list)
    cost_ms: list[tuple[float, ...]] = field(default_factory=list)
    loaded_ms: list[float] = field(default_factory=list)
    slowest_ms: float = 0.0  # in a closed loop
    errors: int = 0


@contextmanager
def servers(args: argparse.Namespace) -> Iterator[tuple[dict[str, Way], list[psutil.Process]]]:
    """Triton and the gateway, started; the ways to ask, and the two processes."""
    drawn = draw(COUNT)
    direct = [http_ask(MODEL, one) for one in drawn]
    raw = asks(MODEL, [digest_of(one.pixels) for one in drawn], format="raw")
    png = asks(MODEL, [digest_of(one.png) for one in drawn])
    with tempfile.TemporaryDirectory() as folder:
        grpc_port, repository = free_port(), _configured(Path(folder), args)
        server = triton(repository, f"--grpc-port={grpc_port}", "--grpc-address=127.0.0.1")
        gateway = _gateway(grpc_port)
        if not args.together:
            first, *others = sorted(os.sched_getaffinity(0))
            server, gateway = _pinned(server, [first]), _pinned(gateway, others)
            os.sched_setaffinity(0, others)
        with (
            running(server, MODEL, direct[0]) as below,
            running(gateway, MODEL, png[0]) as above,
        ):
            messages = [grpc_ask(MODEL, one) for one in drawn]
            ways = {
                DIRECT[0]: Way(partial(grpc_loop, grpc_port, messages), None, messages),
                DIRECT[1]: Way(partial(closed_loop, below.target, direct), below, direct),
                RAW: Way(partial(closed_loop, above.target, raw), above, raw),
                PNG: Way(partial(closed_loop, above.target, png), above, png),
            }
            yield ways, [below.process, above.process]


def _configured(folder: Path, args: argparse.Namespace) -> Path:
    """The shipped repository, for Triton's Python back end, which runs ONNX Runtime."""
    shutil.copytree(REPOSITORY / MODEL, folder / MODEL)
    threads = len(os.sched_getaffinity(0)) if args.together else 1
    command = [sys.executable, "-m", "singlepass", "configure", str(folder), MODEL]
    command += ["--runtime", "python", "--no-gpu", "--threads", str(threads)]
    command += ["--instances", str(args.instances)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    if not args.queue_policy:
        file = folder / MODEL / FILE
        config = parse(file.read_text())
        config.dynamic_batching.ClearField("default_queue_policy")
        file.write_text(to_text(config))
    return folder


def _gateway(grpc_port: int) -> Server:
    command = (sys.executable, "-m", "singlepass", "serve", "--port={port}", "--model={model}")
    options = (
        f"--repository={REPOSITORY}",
        f"--triton=127.0.0.1:{grpc_port}",
        "--max-queue=256",
        "--log-level=warning",
    )
    return Server("singlepass", (*command, *options), ROOT)


def _pinned(server: Server, processors: list[int]) -> Server:
    listed = ",".join(map(str, processors))
    return replace(server, command=("taskset", "--cpu-list", listed, *server.command))


def widest(way: Way, seconds: float) -> tuple[int, float]:
    """With how many connections it gives most, and how much."""
    uvloop.run(way.closed(4, 0.5))
    rates = {width: uvloop.run(way.closed(width, seconds)).rate for width in CLOSED}
    return max(rates.items(), key=lambda pair: pair[1])


def used_s(processes: list[psutil.Process]) -> list[float]:
    """Processor time so far of these, and of this process, which generates the load."""
    return [*map(cpu_s, processes), time.process_time()]


def take(way: Way, found: Found, processes: list[psutil.Process], seconds: float) -> None:
    """One round of one way: saturation with its cost, then one connection."""
    before = used_s(processes)
    load = uvloop.run(way.closed(found.width, seconds))
    taken = zip(used_s(processes), before, strict=True)
    found.cost_ms.append(
        tuple(1e3 * (end - start) / max(1, load.good.count) for end, start in taken)
    )
    alone = uvloop.run(way.closed(1, seconds / 2))
    found.rates.append(load.rate)
    found.alone_ms.append(1e3 * alone.good.percentile_s(50) if alone.good.count else math.inf)
    slowest_s = max(load.good.max_s, alone.good.max_s)
    found.slowest_ms = max(found.slowest_ms, 1e3 * slowest_s)
    found.errors += errors(load) + errors(alone)


def load_ms(way: Way, found: Found, rate: float, seconds: float) -> None:
    """One round of one way at a rate, if the generator has an open loop for it."""
    if way.server is not None:
        at = latency(way.server, way.requests, rate, seconds)
        found.loaded_ms.append(at.median_ms)
        found.errors += at.errors


def measured(args: argparse.Namespace) -> dict[str, Found]:
    """The figures of each way; in each round another one begins."""
    with servers(args) as (ways, processes):
        found = {name: Found(*widest(way, args.seconds / 2)) for name, way in ways.items()}
        rate = max(1.0, SHARE * min(one.trial for one in found.values()))
        order = list(ways)
        for _ in range(args.rounds):
            for name in order:
                take(ways[name], found[name], processes, args.seconds)
            for name in order:
                load_ms(ways[name], found[name], rate, args.seconds)
            print(", ".join(f"{name} {found[name].rates[-1]:.0f}/s" for name in ways), flush=True)
            order = order[1:] + order[:1]
    print_table(found, rate)
    return found


def print_table(found: dict[str, Found], rate: float) -> None:
    """Medians of the rounds."""
    print("| | connections | pictures/s | CPU ms each: Triton | gateway | generator", end=" ")
    print(f"| alone, ms | median at {rate:.0f}/s, ms | slowest, ms | errors |")
    print("|---|" + "---:|" * 9)
    for name, one in found.items():
        cost = " | ".join(
            f"{statistics.median(part):.2f}" for part in zip(*one.cost_ms, strict=True)
        )
        print(f"| {name} | {one.width} | {statistics.median(one.rates):.0f} | {cost}", end=" ")
        print(f"| {statistics.median(one.alone_ms):.2f} | {_median(one.loaded_ms)}", end=" ")
        print(f"| {one.slowest_ms:.0f} | {one.errors} |")


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else ""


def verdicts(found: dict[str, Found]) -> list[Verdict]:
    """The gateway with raw pixels against the direct way beside which it looks worse."""
    gateway, direct = found[RAW], [found[name] for name in DIRECT]
    share = min(_median_of(gateway.rates, one.rates, _ratio) for one in direct)
    added_ms = max(_median_of(gateway.alone_ms, one.alone_ms, sub) for one in direct)
    wrong = sum(one.errors for one in found.values())
    return [
        Verdict("throughput against Triton's own", share, 0.9, "x", at_least=True),
        Verdict("added at the median, one connection", added_ms, 3, " ms"),
        Verdict("answers that are not the right picture", wrong, 0),
    ]


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else math.inf


def _median_of(
    ours: list[float], theirs: list[float], compared: Callable[[float, float], float]
) -> float:
    """Of what is found by comparing the two in each round."""
    return statistics.median(map(compared, ours, theirs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--together", action="store_true", help="all share all processors")
    parser.add_argument("--queue-policy", action="store_true", help="the config as it is published")
    parser.add_argument("--instances", type=int, default=1, help="of the model, in Triton")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each loop in a round")
    args = parser.parse_args()
    if not (TRITON_ENVIRONMENT / "installed").is_file():
        parser.error("run `make triton`")
    if len(os.sched_getaffinity(0)) < 2 and not args.together:
        parser.error("there is one processor: only --together is possible")
    return conclude(verdicts(measured(args)))


if __name__ == "__main__":
    sys.exit(main())
