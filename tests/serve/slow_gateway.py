"""A gateway process for the drain tests: `python slow_gateway.py REPOSITORY RELEASE DRAIN_S`.

Each picture prints "accepted" and then waits until the file RELEASE exists.
"""

import asyncio
import sys
from pathlib import Path

from fake_backend import FakeBackend, grey

from serve.run import run_gateway
from serve.settings import Settings


async def held(feeds):
    print("accepted", flush=True)
    while not Path(sys.argv[2]).exists():
        await asyncio.sleep(0.02)
    return await grey(feeds)


if __name__ == "__main__":
    settings = Settings(repository=Path(sys.argv[1]), port=0, drain_s=float(sys.argv[3]))
    sys.exit(run_gateway(settings, FakeBackend(held)))
