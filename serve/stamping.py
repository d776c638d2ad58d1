"""The middleware that stamps: each request gets an id, each answer carries it and its time."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import InvalidParametersError
from serve.problems import on_serve_error
from serve.stamps import Stamp, put, read_id


class Stamping:
    """Around the whole application but for its handler of bugs, which stamps its own answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse an id that is none; else answer with it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        app, stamp = self._app, Stamp()
        try:
            stamp = Stamp(read_id(Headers(scope=scope)), stamp.started)
        except InvalidParametersError as error:
            put(scope, stamp)
            app = await on_serve_error(Request(scope), error)
        put(scope, stamp)

        async def send_stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(stamp.headers(headers.get("Server-Timing")))
            await send(message)

        return await app(scope, receive, send_stamped)
