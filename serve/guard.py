"""The innermost middleware: what no route can answer, so that it leaves by the same door."""

import logging

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.problems import on_bug, on_serve_error
from serve.stamps import stamp_of

log = logging.getLogger(__name__)


class Guard:
    """Refuses a request whose id is none, and answers for a route that failed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the routes answer. This is the one place that catches whatever nobody foresaw."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        stamp = stamp_of(scope)
        if stamp.refused is not None:
            refusal = await on_serve_error(Request(scope), stamp.refused)
            return await refusal(scope, receive, send)
        try:
            return await self._app(scope, receive, send)
        except Exception as error:
            if stamp.status:
                raise  # the answer has begun: the server logs this and closes the connection
            log.exception("a bug")
            answer = await on_bug(Request(scope), error)
            return await answer(scope, receive, send)
