"""A route whose function takes the request as it is and gives the whole answer."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class PlainRoute(APIRoute):
    """Documented as any other of FastAPI's, which then reads and resolves nothing for its function.

    The function is `async def name(request: Request) -> Response`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself."""
        return self.endpoint
