"""The outermost middleware: each request gets an id, each answer carries it and its time.

When an answer is over it is counted, logged and traced, here and nowhere else.
"""

from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import access_log, trace_context
from serve.metrics import OTHER, Metrics
from serve.stamps import REQUEST_ID_HEADER, Stamp, put, stamp_for

ID_HEADER = REQUEST_ID_HEADER.lower().encode()
TIMING_HEADER = b"server-timing"
UNANSWERED = 499  # nothing was sent: the gateway stopped, or nobody was there any more


class Span(Protocol):
    """A request in a trace."""

    def end(self, route: str, method: str, stamp: Stamp) -> None:
        """The answer is over; what is known of it is in the stamp."""


class Tracing(Protocol):
    """What makes spans, where the settings ask for traces."""

    def begin(self, scope: Scope, stamp: Stamp, parent: trace_context.TraceContext | None) -> Span:
        """A span for a request, and its context for whatever the request causes."""

    async def close(self) -> None:
        """Send what is left."""


class Stamping:
    """Around everything, so that preflights, refusals and bugs are stamped and counted too."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracing: Tracing | None = None,
        log_prompts: bool = False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, and note how."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        stamp = stamp_for(headers)
        put(scope, stamp)
        parent = trace_context.read(headers)
        trace_context.enter(parent)
        span = self._tracing.begin(scope, stamp, parent) if self._tracing is not None else None

        async def send_stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                stamp.status = message["status"]
                message = {**message, "headers": stamped(message["headers"], stamp)}
            else:
                stamp.sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            return await self._app(scope, receive, send_stamped)
        finally:
            self._over(scope, stamp, span)

    def _over(self, scope: Scope, stamp: Stamp, span: Span | None) -> None:
        stamp.status = stamp.status or UNANSWERED
        stamp.took_s = stamp.elapsed_s
        route, method = route_of(scope), scope["method"]
        self._metrics.answered(route, method, stamp.status, stamp.took_s)
        if "problem" in stamp.facts:
            self._metrics.refused(stamp.facts["problem"])
        access_log.write(scope, stamp, route, self._log_prompts)
        if span is not None:
            span.end(route, method, stamp)


def stamped(headers: list[tuple[bytes, bytes]], stamp: Stamp) -> list[tuple[bytes, bytes]]:
    """An answer's headers with the id, and with the total at the end of Server-Timing."""
    total = b"total;dur=%.2f" % (stamp.elapsed_s * 1e3)
    kept = []
    for name, value in headers:
        if name == TIMING_HEADER:
            total = value + b", " + total
        else:
            kept.append((name, value))
    kept += [(ID_HEADER, stamp.request_id.encode("ascii")), (TIMING_HEADER, total)]
    return kept


def route_of(scope: Scope) -> str:
    """The template of the route that was met, as in /v1/models/{id}; else OTHER."""
    route = scope.get("route")
    path = getattr(route, "path_format", None) or getattr(route, "path", None)
    return path if isinstance(path, str) else OTHER
