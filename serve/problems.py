"""The one table from the tree in `errors` to HTTP statuses, and the two shapes of an error.

RFC 9457 problems, but under /v1 the shape of OpenAI's API.
"""

import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve import errors
from serve.errors import FieldError, RequestError, RetryableError, ServeError
from serve.stamps import note, stamp_of

MEDIA_TYPE = "application/problem+json"
V1 = "/v1/"
V1_STATUSES = {422: 400}  # OpenAI's API knows one status for every fault of a request
CHALLENGE = 'Bearer realm="singlepass"'
BUG = (500, "internal-error", "the gateway failed; its log says why")

# error -> status, and the tail of `type`; `title` is the tail in words
STATUSES: dict[type[ServeError], tuple[int, str]] = {
    errors.MalformedBodyError: (400, "malformed-body"),
    errors.UnauthorizedError: (401, "unauthorized"),
    errors.UnknownModelError: (404, "model-not-found"),
    errors.BodyTooSlowError: (408, "body-too-slow"),
    errors.BodyTooLargeError: (413, "body-too-large"),
    errors.UnsupportedMediaTypeError: (415, "unsupported-media-type"),
    errors.InvalidParametersError: (422, "invalid-parameters"),
    errors.QueueFullError: (429, "queue-full"),
    errors.RateLimitedError: (429, "rate-limited"),
    errors.DeadlineError: (429, "deadline-cannot-be-met"),
    errors.InferenceError: (500, "inference-failed"),
    errors.NotReadyError: (503, "not-ready"),
}


async def on_serve_error(request: Request, error: Exception) -> JSONResponse:
    """Any error of our tree."""
    assert isinstance(error, ServeError), f"registered for {type(error)}"
    status, slug = STATUSES[type(error)]
    headers = {}
    if isinstance(error, RetryableError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, errors.UnauthorizedError):
        headers["WWW-Authenticate"] = CHALLENGE
    fields = error.errors if isinstance(error, RequestError) else ()
    return _answer(request, status, slug, str(error), fields, headers)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """A path that does not exist, or a method that it does not have."""
    assert isinstance(error, HTTPException), f"registered for {type(error)}"
    detail = f"{request.method} {request.url.path}: {error.detail}"
    slug = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    return _answer(request, error.status_code, slug, detail, headers=error.headers)


async def on_bug(request: Request, error: Exception) -> JSONResponse:
    """What nobody foresaw: the log has its trace, the client learns nothing of it."""
    stamp_of(request.scope).bug = error
    return _answer(request, *BUG)


def problem(
    status: int, slug: str, detail: str, fields: Iterable[FieldError], request_id: str
) -> dict[str, object]:
    """An error as an RFC 9457 problem."""
    content: dict[str, object] = {
        "type": f"urn:singlepass:problem:{slug}",
        "title": slug.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }
    listed = [{"name": field.name, "detail": field.detail} for field in fields]
    return content | ({"errors": listed} if listed else {})


def v1_error(
    status: int, slug: str, detail: str, fields: Iterable[FieldError]
) -> dict[str, object]:
    """An error as OpenAI's API says it; `param` is the first field that is wrong."""
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    else:
        kind = "server_error" if status >= 500 else "invalid_request_error"
    param = next((field.name for field in fields), None)
    code = slug.replace("-", "_")
    return {"error": {"message": detail, "type": kind, "param": param, "code": code}}


def _answer(
    request: Request,
    status: int,
    slug: str,
    detail: str,
    fields: Iterable[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    note(request, problem=slug)
    if request.scope["path"].startswith(V1):
        status = V1_STATUSES.get(status, status)
        return JSONResponse(v1_error(status, slug, detail, fields), status, headers=headers)
    request_id = stamp_of(request.scope).request_id
    content = problem(status, slug, detail, fields, request_id)
    return JSONResponse(content, status, headers=headers, media_type=MEDIA_TYPE)
