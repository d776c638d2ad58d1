"""OpenTelemetry: a span for each request, with one for each stage, sent by OTLP over HTTP.

Everything is chosen by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT and _HEADERS,
OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_*.
"""

import asyncio
import os
import threading
import time
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)
from starlette.types import Scope

import serve
from serve import trace_context
from serve.stamps import Stamp
from serve.trace_context import TraceContext

FLUSH_S = 3.0  # a collector that is away does not hold up the end of the gateway
STAGES = ("tokenize", "queue", "infer", "encode")  # in the order in which a picture meets them
# facts that say what was asked for and made; never the prompt
ATTRIBUTES = ("caller", "priority", "model", "pictures", "size", "format", "reused")


class OpenTelemetry:
    """Makes spans and sends them from a thread of its own."""

    def __init__(self) -> None:
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "singlepass"}
        resource = Resource.create({**named, SERVICE_VERSION: serve.__version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("singlepass", serve.__version__)

    def begin(self, scope: Scope, stamp: Stamp, parent: TraceContext | None) -> "RequestSpan":
        """A server's span below the caller's; what the request causes is below it."""
        now_ns = time.time_ns()
        span = self._tracer.start_span(
            scope["method"], _context(parent), kind=SpanKind.SERVER, start_time=now_ns
        )
        made = span.get_span_context()
        trace_context.enter(
            TraceContext(
                trace.format_trace_id(made.trace_id),
                trace.format_span_id(made.span_id),
                f"{made.trace_flags:02x}",
                "" if parent is None else parent.state,
            )
        )
        return RequestSpan(self._tracer, span, now_ns, scope)

    async def close(self) -> None:
        """Send what is left, for a while."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, FLUSH_S)
        if ending.is_alive():
            await asyncio.to_thread(self._exporter.shutdown)  # gives up what it tries to send


class RequestSpan:
    """The server's span of one request."""

    def __init__(
        self, tracer: trace.Tracer, span: trace.Span, started_ns: int, scope: Scope
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._started_ns = started_ns
        self._scope = scope

    def end(self, route: str, method: str, stamp: Stamp) -> None:
        """Name it, tell what became of it, and add the stages that were measured."""
        ended_ns = self._started_ns + _ns(stamp.took_s)
        if self._span.is_recording():
            self._span.update_name(f"{method} {route}")
            self._span.set_attributes(_attributes(self._scope, route, method, stamp))
            if stamp.bug is not None:
                self._span.record_exception(stamp.bug)
            if stamp.status >= 500:
                self._span.set_status(Status(StatusCode.ERROR))
            self._add_stages(stamp.facts, ended_ns)
        self._span.end(ended_ns)

    def _add_stages(self, facts: dict[str, Any], ended_ns: int) -> None:
        """Only durations are measured: the stages are laid end to end before the answer's end."""
        lengths = [_ns(facts.get(f"{stage}_s", 0.0)) for stage in STAGES]
        at_ns = max(self._started_ns, ended_ns - sum(lengths))
        below = trace.set_span_in_context(self._span)
        for stage, length in zip(STAGES, lengths, strict=True):
            if f"{stage}_s" in facts:
                self._tracer.start_span(stage, below, start_time=at_ns).end(at_ns + length)
                at_ns += length


def _context(parent: TraceContext | None) -> Context:
    """The caller's span as OpenTelemetry knows it; without one, a trace begins here."""
    if parent is None:
        return Context()
    remote = SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(parent.flags, 16)),
        trace_state=TraceState.from_header([parent.state]),
    )
    return trace.set_span_in_context(NonRecordingSpan(remote), Context())


def _attributes(scope: Scope, route: str, method: str, stamp: Stamp) -> dict[str, Any]:
    """By OpenTelemetry's conventions for HTTP servers, and what is ours."""
    named = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": stamp.status,
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "singlepass.request_id": stamp.request_id,
    }
    if scope.get("client"):
        named["client.address"] = scope["client"][0]
    if "problem" in stamp.facts:
        named["error.type"] = stamp.facts["problem"]
    ours = {name: stamp.facts[name] for name in ATTRIBUTES if name in stamp.facts}
    return named | {f"singlepass.{name}": value for name, value in ours.items()}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
