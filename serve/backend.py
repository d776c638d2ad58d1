"""The seam between the gateway and what makes pictures: one protocol, as small as it can be."""

import asyncio
import math
from typing import NamedTuple, Protocol

from serve.images import Pixels
from serve.model import Feeds
from serve.turn import USUAL, Turn


class Inferred(NamedTuple):
    """A picture, how long it waited for its batch and how long the batch took."""

    pixels: Pixels  # [H, W, 3] uint8
    queue_s: float
    infer_s: float


class Backend(Protocol):
    """Makes pictures from a graph's inputs. Used on one event loop, between start and close."""

    @property
    def ready(self) -> bool:
        """Whether pictures can be made now."""

    @property
    def why_not(self) -> str:
        """Where it is not ready: why, in one sentence for who asks."""

    @property
    def waiting(self) -> int:
        """Pictures that were asked for and have not begun."""

    async def start(self) -> None:
        """Open what is needed; raises RepositoryError if the graph cannot be served."""

    async def close(self) -> None:
        """Let go of everything; pictures still waiting fail with InferenceError."""

    def wait_s(self, pictures: int, turn: Turn = USUAL) -> float:
        """Seconds until so many further pictures of this turn would be made; of 0: would begin."""

    def infer(
        self, feeds: Feeds, within_s: float = math.inf, turn: Turn = USUAL
    ) -> "asyncio.Future[Inferred]":
        """Queue one picture, now. To cancel the future is to take it out of the queue.

        Nobody waits longer than `within_s`; a back end may drop the picture then. The future fails
        with InferenceError if the picture cannot be made, or with a RetryableError if not now.
        """
