"""What is known of a request whatever becomes of it: its id, its time, and facts for the log."""

import random
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Scope

from serve.errors import FieldError, InvalidParametersError

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID = re.compile(r"[A-Za-z0-9._:+=/@-]{1,128}")
KEY = "stamp"

_current: ContextVar["Stamp | None"] = ContextVar("stamp", default=None)


def new_id() -> str:
    """A request id of the gateway's own; no secret, and so made without a system call.

    A call lets go of the interpreter, and the event loop then waits for it behind the threads.
    """
    return f"{random.getrandbits(128):032x}"


@dataclass(slots=True)
class Stamp:
    """A request's id and when it came; `refused` says what is wrong with the id that it gave.

    `facts` are for the access log and the trace: caller, model, pictures, seed, prompt, and the
    seconds of the stages as queue_s, tokenize_s, infer_s and encode_s.
    """

    request_id: str = field(default_factory=new_id)
    started: float = field(default_factory=time.perf_counter)
    refused: InvalidParametersError | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    status: int = 0  # of the answer; 0 before it has begun
    sent_bytes: int = 0  # of the answer's body
    bug: Exception | None = None  # what nobody foresaw
    took_s: float = 0.0  # from the request's head to the answer's end

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started


def stamp_for(headers: Headers) -> Stamp:
    """A new request's stamp, with the id that the caller gave if it is one."""
    given = headers.get(REQUEST_ID_HEADER)
    if given is None:
        return Stamp()
    if not REQUEST_ID.fullmatch(given):
        detail = f"is {given[:60]!r}, allowed are 1 to 128 letters, digits and . _ : + = / @ -"
        error = InvalidParametersError.of(FieldError(REQUEST_ID_HEADER, detail))
        return Stamp(refused=error)
    return Stamp(given)


def put(scope: Scope, stamp: Stamp) -> None:
    """Keep the stamp with the request, and with the task that works on it."""
    scope.setdefault("state", {})[KEY] = stamp
    _current.set(stamp)


def stamp_of(scope: Scope) -> Stamp:
    """The stamp of a request that came through the middleware."""
    stamp = scope["state"][KEY]
    assert isinstance(stamp, Stamp), f"the request carries {type(stamp)}"
    return stamp


def note(request: HTTPConnection | Scope, **facts: object) -> None:
    """Add facts to what is known of a request; never a key. Later ones replace earlier ones."""
    scope = request.scope if isinstance(request, HTTPConnection) else request
    stamp_of(scope).facts.update(facts)


def current_id() -> str | None:
    """The id of the request that the running task works on."""
    stamp = _current.get()
    return None if stamp is None else stamp.request_id
