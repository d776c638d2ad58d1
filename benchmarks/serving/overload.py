"""Three times more requests than the gateway can answer, for a minute.

    python benchmarks/serving/overload.py

Poisson arrivals, each with a deadline. What is accepted has to be answered in time, what cannot be
has to be refused at once, the throughput has to stay, and the memory too.
"""

import argparse
import asyncio
import sys

import uvloop
from asks import asks, digests
from load import Ask, Load, closed_loop, open_loop, poisson
from servers import Running, all_servers, running
from verdict import Verdict, conclude

CONNECTIONS = 512
DIFFERENT = 2048  # requests: none is asked again while it is in work
TIMES = 3.0
EVERY_S = 1.0
SETTLED = 0.2  # of the time: from then on the memory is to be flat
MARGIN_S = 0.005  # for the way here and back, on one machine


async def peak(server: Running, requests: list[Ask], seconds: float) -> float:
    """Pictures per second of closed loops: the best of two widths."""
    await closed_loop(server.target, requests, 16, 1.0)
    loads = [await closed_loop(server.target, requests, width, seconds) for width in (16, 48)]
    return max(load.rate for load in loads)


async def overload(
    server: Running, requests: list[Ask], rate: float, seconds: float
) -> tuple[Load, list[int]]:
    """The load, and the gateway's memory in bytes once in EVERY_S."""
    memory: list[int] = []

    async def watch() -> None:
        while True:
            memory.append(server.process.memory_info().rss)
            await asyncio.sleep(EVERY_S)

    watching = asyncio.create_task(watch())
    arrivals = poisson(rate, seconds, seed=1)
    load = await open_loop(server.target, requests, arrivals, CONNECTIONS)
    watching.cancel()
    return load, memory


def growth(memory: list[int]) -> float:
    """The last fifth's mean over that of the fifth after the first, minus 1."""
    fifth = max(1, int(SETTLED * len(memory)))
    early, late = memory[fifth : 2 * fifth], memory[-fifth:]
    return (sum(late) / len(late)) / (sum(early) / len(early)) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--deadline-ms", type=int, default=1000)
    args = parser.parse_args()
    deadline = f"X-Deadline-Ms: {args.deadline_ms}\r\n"
    requests = asks("shapes", digests("shapes", DIFFERENT), headers=deadline)
    with running(all_servers()[0], "shapes", requests[0]) as server:
        most = uvloop.run(peak(server, requests, 5.0))
        load, memory = uvloop.run(overload(server, requests, TIMES * most, args.seconds))
    in_time = load.good.share_within(args.deadline_ms / 1e3 + MARGIN_S)
    refusal_ms = 1e3 * load.refused.percentile_s(99)
    print(f"peak {most:.1f}/s; offered {TIMES * most:.1f}/s for {args.seconds:.0f} s:", end=" ")
    print(f"{load.good.count} pictures, {load.rate:.1f}/s; answers {dict(load.statuses)}")
    print(f"pictures: median {1e3 * load.good.percentile_s(50):.0f} ms", end=", ")
    print(
        f"p99 {1e3 * load.good.percentile_s(99):.0f}, worst {1e3 * load.good.max_s:.0f};", end=" "
    )
    print(f"refusals: median {1e3 * load.refused.percentile_s(50):.2f}, p99 {refusal_ms:.2f} ms")
    print(f"memory {memory[0] / 1e6:.0f} MB at first, {memory[-1] / 1e6:.0f} MB at last")
    return conclude(
        [
            Verdict("throughput against the peak", load.rate / most, 0.9, "x", at_least=True),
            Verdict("accepted requests in time", in_time, 0.99, at_least=True),
            Verdict("refused within, p99", refusal_ms, 50, " ms"),
            Verdict("growth of memory", 100 * growth(memory), 2, " %"),
            Verdict("wrong pictures", load.wrong, 0),
            Verdict("requests without an answer", load.unanswered, 0),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
