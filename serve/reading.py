"""What a request says beside its fields: its body, within the limits, and its deadline."""

import asyncio

from fastapi import Request

from serve.errors import (
    BodyTooLargeError,
    BodyTooSlowError,
    FieldError,
    InvalidParametersError,
    UnsupportedMediaTypeError,
)
from serve.settings import Settings

DEADLINE_HEADER = "X-Deadline-Ms"
MAX_DEADLINE_MS, DEADLINE_DIGITS = 86_400_000, 8


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body; refused by its declared length before it is read, and while it is."""
    limit_bytes = settings.max_body_bytes
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(
            f"Content-Type is {media_type or 'not given'}, allowed is application/json"
        )
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        detail = f"Content-Encoding is {coding[:60]}, allowed is a body that is not encoded"
        raise UnsupportedMediaTypeError(detail)
    declared = request.headers.get("content-length", "").lstrip("0")  # int() takes 4300 digits
    too_large = BodyTooLargeError(f"the body is too large, allowed are {limit_bytes} bytes")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large
    body = b""
    try:
        async with asyncio.timeout(settings.body_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit_bytes:
                    raise too_large
    except TimeoutError:
        detail = f"{len(body)} bytes of the body came in {settings.body_s:g} s, but not its end"
        raise BodyTooSlowError(detail) from None
    return body


def read_deadline_s(request: Request, settings: Settings) -> float:
    """Seconds that the caller gives, else the settings; raises InvalidParametersError."""
    value = request.headers.get(DEADLINE_HEADER)
    if value is None:
        return settings.deadline_ms / 1e3
    decimal = value.isascii() and value.isdecimal() and len(value) <= DEADLINE_DIGITS
    if not (decimal and 1 <= int(value) <= MAX_DEADLINE_MS):
        detail = f"is {value[:60]!r}, allowed is 1 to {MAX_DEADLINE_MS} (milliseconds)"
        raise InvalidParametersError.of(FieldError(DEADLINE_HEADER, detail))
    return int(value) / 1e3
