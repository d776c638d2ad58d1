"""What is measured of a running server: its saturation, its latency at a rate, its cost."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import psutil
import uvloop
from load import Ask, Load, closed_loop, open_loop, poisson
from servers import Running

CONNECTIONS = 256  # of the open loop: more than any server here holds
CLOSED = (4, 16, 64)  # connections of the closed loops; the best is the saturation


@dataclass(frozen=True)
class Saturation:
    """The most that a server gives in a closed loop."""

    rate: float  # right pictures per second
    connections: int
    unloaded_ms: float  # median of one connection
    cpu_ms: float  # of all the server's processes, per picture, at saturation
    memory_mb: float
    started_s: float
    errors: int  # answers that are no picture, or a wrong one

    def as_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Latency:
    """Percentiles at a rate, in the open loop."""

    offered: float  # requests per second
    rate: float  # right pictures per second
    median_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    errors: int

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def saturation(server: Running, asks: Sequence[Ask], seconds: float) -> Saturation:
    """Closed loops of several widths, `seconds` each, after one that warms up."""
    uvloop.run(closed_loop(server.target, asks, 4, min(1.0, seconds)))
    alone = uvloop.run(closed_loop(server.target, asks, 1, seconds / 2))
    best, width, cost, failed = Load(seconds=1.0), 0, 0.0, errors(alone)
    for connections in CLOSED:
        before = cpu_s(server.process)
        load = uvloop.run(closed_loop(server.target, asks, connections, seconds))
        failed += errors(load)
        if load.rate > best.rate:
            best, width = load, connections
            cost = (cpu_s(server.process) - before) / load.good.count
    return Saturation(
        rate=best.rate,
        connections=width,
        unloaded_ms=1e3 * alone.good.percentile_s(50),
        cpu_ms=1e3 * cost,
        memory_mb=server.memory_bytes() / 1e6,
        started_s=server.started_s,
        errors=failed,
    )


def latency(server: Running, asks: Sequence[Ask], rate: float, seconds: float) -> Latency:
    """The open loop at `rate` requests per second, after a second that warms up."""

    async def both() -> Load:
        await open_loop(server.target, asks, poisson(rate, 1.0, seed=0), CONNECTIONS)
        return await open_loop(server.target, asks, poisson(rate, seconds, seed=1), CONNECTIONS)

    load = uvloop.run(both())
    percentiles = [1e3 * load.good.percentile_s(percent) for percent in (50, 90, 99, 99.9)]
    return Latency(rate, load.rate, *percentiles, 1e3 * load.good.max_s, errors(load))


def errors(load: Load) -> int:
    """Answers that are no picture, wrong ones, and those that never came."""
    return load.asked - load.good.count


def cpu_s(process: psutil.Process) -> float:
    """Processor time that a process and all below it have taken so far."""
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system
    return total
