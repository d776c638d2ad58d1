"""W3C Trace Context, level 1: which trace a request belongs to, read from it and passed on.

`current` is what a call to another service should carry, wherever in the request's work it is made.
"""

import re
from contextvars import ContextVar
from typing import NamedTuple

from starlette.datastructures import Headers

TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
ZEROS = re.compile(r"0*")
MAX_MEMBERS = 32  # of tracestate, section 3.3.1.1
_KEY = r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
MEMBER = re.compile(
    rf"({_KEY})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)

_current: ContextVar["TraceContext | None"] = ContextVar("trace_context", default=None)


class TraceContext(NamedTuple):
    """A place in a trace: its id, the span that calls, the flags, and what vendors add."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    flags: str  # 2
    state: str = ""

    def headers(self) -> dict[str, str]:
        """traceparent, and tracestate where there is any."""
        headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{self.flags}"}
        return headers | ({"tracestate": self.state} if self.state else {})


def read(headers: Headers) -> TraceContext | None:
    """The context that a request carries; None if there is none, or one that is not valid.

    Without a valid traceparent the tracestate has no meaning (section 3.3); a tracestate that is
    not valid is left out, and the rest holds.
    """
    given = headers.getlist("traceparent")
    if len(given) != 1:
        return None
    found = TRACEPARENT.fullmatch(given[0].strip(" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if ZEROS.fullmatch(trace_id) or ZEROS.fullmatch(span_id):
        return None
    return TraceContext(trace_id, span_id, flags, _state(headers.getlist("tracestate")))


def _state(values: list[str]) -> str:
    """The members of all tracestate headers in one; "" if any member is none, or there are two."""
    members = [member.strip(" \t") for value in values for member in value.split(",")]
    members = [member for member in members if member]
    found = [MEMBER.fullmatch(member) for member in members]
    keys = {one[1] for one in found if one is not None}
    return ",".join(members) if len(keys) == len(members) <= MAX_MEMBERS else ""


def enter(context: TraceContext | None) -> None:
    """From here on, in this task and those it begins, this is the context."""
    _current.set(context)


def current() -> dict[str, str]:
    """The headers for a call that the present request causes; none outside of any trace."""
    context = _current.get()
    return {} if context is None else context.headers()


def trace_id() -> str | None:
    """The trace of the present request."""
    context = _current.get()
    return None if context is None else context.trace_id
