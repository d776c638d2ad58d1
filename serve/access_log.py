"""One line a request, when its answer is over."""

import logging

from starlette.types import Scope

from serve.stamps import Stamp

QUIET = frozenset({"/livez", "/readyz", "/metrics"})  # asked all the time, by machines

log = logging.getLogger(__name__)


def write(scope: Scope, stamp: Stamp, route: str, log_prompts: bool) -> None:
    """What was asked and answered; the prompt only if that is wanted, never headers or a query."""
    level = logging.DEBUG if route in QUIET else logging.INFO
    if not log.isEnabledFor(level):
        return
    method, client = scope["method"], scope.get("client")
    facts = {
        "method": method,
        "route": route,
        "path": scope["path"],
        "status": stamp.status,
        "duration_ms": round(stamp.took_s * 1e3, 3),
        "bytes": stamp.sent_bytes,
        "client": client[0] if client else None,
    }
    for name, value in stamp.facts.items():
        if name.endswith("_s"):
            facts[f"{name[:-2]}_ms"] = round(value * 1e3, 3)
        elif name != "prompt" or log_prompts:
            facts[name] = value
    record = log.makeRecord(
        log.name,
        level,
        __file__,
        0,
        "%s %s %d",
        (method, route, stamp.status),
        None,
        extra={"facts": facts},
    )
    log.handle(record)
