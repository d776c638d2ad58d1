"""This project's gateway: the real one, but for the null model's back end.

python server.py null|shapes PORT
"""

import asyncio
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from picture import NULL, REPOSITORY

from serve.backend import Inferred
from serve.run import run_gateway
from serve.settings import Settings


class NullBackend:
    """Answers at once with one picture."""

    ready = True
    why_not = ""

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def wait_s(self, pictures: int, turn: object = None) -> float:
        return 0.0

    def infer(
        self, feeds: object, within_s: float = math.inf, turn: object = None
    ) -> "asyncio.Future[Inferred]":
        future = asyncio.get_running_loop().create_future()
        future.set_result(Inferred(NULL, 0.0, 0.0))
        return future


def main() -> int:
    model, port = sys.argv[1], int(sys.argv[2])
    settings = Settings(
        repository=REPOSITORY, model="shapes", port=port, max_queue=256, log_level="warning"
    )
    return run_gateway(settings, NullBackend() if model == "null" else None)


if __name__ == "__main__":
    sys.exit(main())
