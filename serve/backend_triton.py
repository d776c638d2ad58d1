"""The back end on Triton servers, over gRPC: single pictures go out, Triton forms the batches."""

import asyncio
import logging
import math
import time
from collections.abc import Callable

import grpc  # type: ignore[import-untyped]

from serve import trace_context
from serve.backend import Inferred
from serve.errors import NotReadyError
from serve.metrics import ModelMetrics, unobserved
from serve.model import Feeds, Model
from serve.pace import Pace
from serve.triton_channel import TritonChannel, connect
from serve.triton_config import difference, obeys_deadlines, priority_levels
from serve.triton_errors import error_of
from serve.triton_picture import TritonPicture
from serve.triton_window import Waiting, Window
from serve.turn import USUAL, Turn

POLL_S = 0.5
PROBE_S = 2.0  # a server that does not answer a probe within this is not ready
RETRY_AFTER_S = 1.0
IN_FLIGHT = 32

log = logging.getLogger(__name__)


class TritonBackend:
    """Serves one version of a model; `server` is HOST:PORT of Triton's gRPC.

    It starts without a server, and is ready while one serves the version that the manifest names
    with the inputs and the output that it lists. Triton holds at most `in_flight` pictures.
    """

    def __init__(
        self,
        model: Model,
        server: str,
        in_flight: int = IN_FLIGHT,
        *,
        metrics: ModelMetrics | None = None,
        connect: Callable[[str], TritonChannel] = connect,
    ) -> None:
        self._model = model
        self._server = server
        self._connect = connect
        self._channel: TritonChannel | None = None
        self._watching: asyncio.Task[None] | None = None
        self._picture = TritonPicture(model.manifest)
        self._window = Window(in_flight, self._ask, metrics or unobserved())
        self._pace = Pace()
        self._priority_levels = 0
        self._why_not: str | None = f"Triton at {server} has not been asked yet"

    @property
    def ready(self) -> bool:
        """Whether the last probe found the model, as the manifest describes it."""
        return self._why_not is None

    @property
    def why_not(self) -> str:
        """Why it is not ready."""
        return self._why_not or ""

    @property
    def waiting(self) -> int:
        """Pictures that have not been sent to Triton yet."""
        return self._window.waiting

    async def start(self) -> None:
        """Look for the model once, and again all the time; a server that is not there may come."""
        self._channel = self._connect(self._server)
        await self._look(self._channel)
        self._watching = asyncio.ensure_future(self._watch(self._channel))

    async def close(self) -> None:
        """Give up what is in work, and the connections."""
        channel, self._channel = self._channel, None
        self._why_not = "the gateway has stopped"
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._window.close()
        if channel is not None:
            await channel.close()

    def wait_s(self, pictures: int, turn: Turn = USUAL) -> float:
        """Seconds until so many more would be made; of 0: begin. As Triton answered lately."""
        last = self._window.before(turn, max(1, pictures))
        return self._pace.wait_s(last + 1 if pictures else last)

    def infer(
        self, feeds: Feeds, within_s: float = math.inf, turn: Turn = USUAL
    ) -> "asyncio.Future[Inferred]":
        """Send one picture, in its turn; nobody waits for it longer than `within_s`."""
        assert self._channel is not None, "infer before start or after close"
        return self._window.put(feeds, within_s, turn, trace_context.current())

    async def _ask(self, item: Waiting) -> Inferred:
        assert self._channel is not None, "the window outlived the channel"
        start, within_s, in_work = time.perf_counter(), item.left_s, self._window.in_flight
        request = self._picture.request(item.feeds, within_s, self._priority(item.turn))
        timeout_s = within_s if within_s < math.inf else None
        try:
            response = await self._channel.infer(request, timeout_s, item.headers)
        except grpc.aio.AioRpcError as error:
            raise error_of(error.code().name, str(error.details()), self._retry_after_s) from error
        taken_s = time.perf_counter() - start
        self._pace.add(taken_s, in_work)
        pixels = self._picture.pixels(response, item.feeds)
        return Inferred(pixels, start - item.queued_at, taken_s)

    def _priority(self, turn: Turn) -> int:
        """As Triton counts, from 1, the most urgent; 0 where the model knows no priorities."""
        return min(1 if turn.priority == "interactive" else 2, self._priority_levels)

    @property
    def _retry_after_s(self) -> float:
        return max(RETRY_AFTER_S, self.wait_s(0))

    async def _watch(self, channel: TritonChannel) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self._look(channel)

    async def _look(self, channel: TritonChannel) -> None:
        """Ask for the model and log what has changed; what it lacks twice, nobody waits for."""
        before, found = self._why_not, await self._probe(channel)
        if found is None and before is not None:
            log.info("Triton at %s serves %s", self._server, self._model.label)
        elif found != before:
            log.warning("not ready: %s", found)
        self._why_not = found
        if found is not None and before is not None:
            self._window.refuse(lambda: NotReadyError(found, self._retry_after_s))

    async def _probe(self, channel: TritonChannel) -> str | None:
        """Why pictures cannot be made now, or None."""
        name, version = self._model.manifest.model, str(self._model.manifest.version)
        try:
            if not await channel.ready(name, version, PROBE_S):
                return f"Triton at {self._server} does not serve {self._model.label}"
            if self._why_not is None:
                return None
            config = await channel.config(name, version, PROBE_S)
        except grpc.aio.AioRpcError as error:
            return f"Triton at {self._server} does not serve {self._model.label}: {error.details()}"
        different = difference(config, self._model.manifest)
        if different is None and not obeys_deadlines(config):
            log.warning("%s: Triton's config lets no request set its deadline", self._model.label)
        self._priority_levels = priority_levels(config)
        return different and f"Triton at {self._server} has {self._model.label} with {different}"
