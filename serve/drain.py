"""The end of the gateway's life: first nothing new comes in, then what is left is given up."""

import asyncio

from serve.errors import NotReadyError

ELSEWHERE_S = 1.0  # a draining gateway is soon gone; another one, or its successor, answers


class Drain:
    """One for the whole gateway, whatever models it serves. Made on the gateway's event loop."""

    def __init__(self) -> None:
        self.begun = False
        # done once it has taken too long: what is left is refused. All requests await this one
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        """Give up what is still in work."""
        if not self.over.done():
            self.over.set_result(None)

    def check(self) -> None:
        """Raise NotReadyError once nothing new is accepted."""
        if self.begun:
            raise NotReadyError("the gateway is draining and accepts nothing new", ELSEWHERE_S)
