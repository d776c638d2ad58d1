"""The middleware around the routes, outermost first."""

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from serve.errors import SettingsError
from serve.guard import Guard
from serve.metrics import Metrics
from serve.settings import Settings
from serve.stamping import Stamping, Tracing

# What a page of another origin may send and read, beyond what browsers always allow.
ALLOWED = (
    "Authorization",
    "Content-Type",
    "If-None-Match",
    "X-Deadline-Ms",
    "X-Priority",
    "X-Request-ID",
    "traceparent",
    "tracestate",
)
EXPOSED = (
    "ETag",
    "Retry-After",
    "Server-Timing",
    "X-Digest",
    "X-Model",
    "X-Request-ID",
    "X-Seed",
    "X-Size",
)


def layers(settings: Settings, metrics: Metrics, tracing: Tracing | None) -> list[Middleware]:
    """Stamping around all, so that every answer is; the guard inside, so that CORS sees errors."""
    stamping = Middleware(Stamping, metrics, tracing, settings.log_prompts)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=ALLOWED,
        expose_headers=EXPOSED,
    )
    return [stamping, *([cors] if settings.cors_origins else []), Middleware(Guard)]


def open_tracing(settings: Settings) -> Tracing | None:
    """What makes spans, or nothing; raises SettingsError where OpenTelemetry is not installed."""
    if not settings.tracing:
        return None
    try:
        from serve.tracing import OpenTelemetry  # an extra: not every gateway has it
    except ImportError as error:
        raise SettingsError(
            f"tracing is true, which needs the extra singlepass[tracing]: {error}"
        ) from None
    return OpenTelemetry()
