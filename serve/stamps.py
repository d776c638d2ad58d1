"""What every answer carries whatever becomes of the request: its id, and the time it took."""

import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Scope

from serve.errors import FieldError, InvalidParametersError

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID = re.compile(r"[A-Za-z0-9._:+=/@-]{1,128}")
KEY = "stamp"


def new_id() -> str:
    """A request id of the gateway's own."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Stamp:
    """A request's id, and when it came."""

    request_id: str = field(default_factory=new_id)
    started: float = field(default_factory=time.perf_counter)

    def headers(self, timing: str | None = None) -> dict[str, str]:
        """The headers of its answer; `timing` is the answer's own Server-Timing."""
        total = f"total;dur={(time.perf_counter() - self.started) * 1e3:.2f}"
        return {
            REQUEST_ID_HEADER: self.request_id,
            "Server-Timing": f"{timing}, {total}" if timing else total,
        }


def read_id(headers: Headers) -> str:
    """The id that the caller gave, else a new one; raises InvalidParametersError."""
    given = headers.get(REQUEST_ID_HEADER)
    if given is None:
        return new_id()
    if not REQUEST_ID.fullmatch(given):
        detail = f"is {given[:60]!r}, allowed are 1 to 128 letters, digits and . _ : + = / @ -"
        raise InvalidParametersError.of(FieldError(REQUEST_ID_HEADER, detail))
    return given


def put(scope: Scope, stamp: Stamp) -> None:
    """Keep the stamp with the request."""
    scope.setdefault("state", {})[KEY] = stamp


def stamp_of(scope: Scope) -> Stamp:
    """The stamp of a request that came through the middleware."""
    stamp = scope["state"][KEY]
    assert isinstance(stamp, Stamp), f"the request carries {type(stamp)}"
    return stamp
