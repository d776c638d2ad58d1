"""What the load generator itself can do: against a server that does nothing but answer.

    python benchmarks/serving/ceiling.py

A rate near this ceiling says more of the generator than of a server.
"""

import argparse
import asyncio
import hashlib
import multiprocessing
from multiprocessing.connection import Connection as Pipe

import uvloop
from load import Ask, Load, Target, closed_loop, open_loop, poisson

PICTURE = bytes(64 * 64 * 3)
REQUEST = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(PICTURE), PICTURE)
RATES = (500, 2000, 5000)
ASKS = [Ask(REQUEST, hashlib.sha256(PICTURE).digest())]


class Trivial(asyncio.Protocol):
    """Takes each segment for a whole request, which the generator's are."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(ANSWER)


def serve(port: Pipe) -> None:
    """Listen on a free port, tell it, answer until killed."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(run())


async def measure(target: Target, seconds: float) -> tuple[Load, dict[int, Load]]:
    """The closed loop at full speed, the open loop at each of RATES."""
    closed = await closed_loop(target, ASKS, 16, seconds)
    opened = {}
    for rate in RATES:
        opened[rate] = await open_loop(target, ASKS, poisson(rate, seconds, seed=1), 64)
    return closed, opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each loop")
    args = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    closed, opened = uvloop.run(measure(Target(here.recv()), args.seconds))
    server.kill()
    print(f"closed loop, 16 connections: {closed.rate:.0f} requests/s")
    for rate, load in opened.items():
        median, p99 = (1e3 * load.good.percentile_s(percent) for percent in (50, 99))
        print(f"open loop, {rate} requests/s: median {median:.2f} ms, p99 {p99:.2f} ms")


if __name__ == "__main__":
    main()
