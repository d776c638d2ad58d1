"""The gateway as a process: load, listen, serve until a signal, drain, leave."""

import asyncio
import json
import logging
import math
import os
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from serve import heap, logs
from serve.app import create_app
from serve.backend import Backend
from serve.connection import Connection
from serve.errors import SettingsError
from serve.routes import Gateway
from serve.settings import Settings
from serve.subject import example_subject, fields_of

# A thread that comes back from the model or the encoder waits so long for the interpreter, which
# the event loop holds. At Python's 5 ms the model mostly stood still under overload.
SWITCH_S = 0.0005
EXAMPLE_PROMPT = "a small red circle on the left"

log = logging.getLogger(__name__)


def run_gateway(settings: Settings, backend: Backend | None = None, *, leave: bool = False) -> int:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the drain.

    Returns 0 if everything that was accepted has been answered, else 1; with `leave` it ends the
    process with that status instead, and does not wait for a version that is still being opened.
    Raises RepositoryError or SettingsError if serving cannot begin.
    """
    logs.configure(settings)
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        status = runner.run(_serve(settings, backend))
        if leave:
            os._exit(status)  # a thread inside a library cannot be told to stop, only left behind
        return status


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, which serves more requests, where it runs."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


async def _serve(settings: Settings, backend: Backend | None) -> int:
    app = create_app(settings, backend)
    heap.settle()
    with listen(settings) as listener:
        async with app.router.lifespan_context(app):
            server = DrainingServer(app, settings)
            await server.serve(sockets=[listener])
            return 1 if server.gateway.drain.over.done() else 0


def listen(settings: Settings) -> socket.socket:
    """The listening socket; raises SettingsError where the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on host {settings.host}, port {settings.port}: {error.strerror}"
        ) from None
    # asyncio sends small answers at once only on sockets whose protocol is known to be TCP, which
    # create_server leaves open; without this each answer waits 40 ms for an acknowledgement
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, listener.detach())


class DrainingServer(uvicorn.Server):
    """uvicorn, but a first signal drains: it still answers, with 503 to what is new."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        # the lifespan is entered around the server, so that its errors reach the caller
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                http=Connection,
                log_config=None,
                access_log=False,  # the gateway's own knows more
                timeout_graceful_shutdown=1,
                ws="none",
            )
        )
        assert isinstance(app.state.gateway, Gateway), "the lifespan has not begun"
        self.gateway = app.state.gateway
        self._settings = settings
        self._drain_ends = math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and say so in two lines, the second of which works in a shell."""
        await super().startup(sockets)
        assert sockets, "the listening socket is opened before"
        port = sockets[0].getsockname()[1]
        url = f"http://{_reachable(self._settings.host)}:{port}"
        models = (served.model for served in self.gateway.repository.all())
        named = ", ".join(f"{model.label} ({', '.join(model.manifest.sizes)})" for model in models)
        first = self.gateway.repository.all()[0].model.manifest.classes
        subject = EXAMPLE_PROMPT if first is None else example_subject(0, first)
        body = json.dumps({**fields_of(subject), "seed": 1})
        _say(
            f"serving {named} on {url}\n"
            f"curl -sS {url}/generate -H 'Content-Type: application/json' -d '{body}' -o a.png"
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: the drain is over."""
        draining, self.gateway.drain.begun = self.gateway.drain.begun, True
        left_s = 0.0 if draining else self._settings.drain_s
        self._drain_ends = time.monotonic() + left_s
        log.info("%s: draining for at most %.0f s", signal.Signals(sig).name, left_s)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: leave once the drain is done, or has taken too long."""
        drain, idle = self.gateway.drain, self.gateway.repository.idle
        left_s = self._drain_ends - time.monotonic()
        if drain.begun and (idle or left_s <= 0):
            if not idle:
                log.warning("the drain is over, what is still in work is answered with 503")
                drain.end()
            self.config.timeout_graceful_shutdown = max(1, math.ceil(left_s))
            self.should_exit = True
        return await super().on_tick(counter)


def _say(lines: str) -> None:
    """Print, where there is room: a full disk does not keep the gateway from serving."""
    try:
        print(lines, flush=True)
    except OSError as error:
        log.warning("standard output cannot be written: %s", error.strerror)
        # what is left in the buffer would fail again at the end, and with it the exit status
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _reachable(host: str) -> str:
    """A host that a client on this machine can use, fit for a URL."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
