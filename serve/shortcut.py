"""The way to the hot route that is worth one: past FastAPI's and Starlette's own layers.

They cost as much as all that the gateway does itself for a request, refused ones included.
FastAPI still routes every other request, and documents this route with the others.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import ServeError
from serve.problems import on_serve_error


class Shortcut:
    """Innermost: answers POST on one path by its function, and passes on what is anything else."""

    def __init__(
        self, app: ASGIApp, path: str, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> None:
        self._app = app
        self._path = path
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, errors of our tree included."""
        if (
            scope["type"] != "http"
            or scope["path"] != self._path
            or scope["method"] != "POST"
            or scope.get("root_path")
        ):
            return await self._app(scope, receive, send)
        scope["route"] = self
        request = Request(scope, receive)
        try:
            answer = await self._endpoint(request)
        except ServeError as error:
            answer = await on_serve_error(request, error)
        return await answer(scope, receive, send)

    @property
    def path(self) -> str:
        """As a route's: what metrics, log and traces call it."""
        return self._path
