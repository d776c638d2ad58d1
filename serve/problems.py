"""Errors as RFC 9457 problems: the one table from the tree in `errors` to HTTP statuses."""

import logging
import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve import errors
from serve.errors import FieldError, RequestError, RetryableError, ServeError

MEDIA_TYPE = "application/problem+json"

# error -> status, and the tail of `type`; `title` is the tail in words
STATUSES: dict[type[ServeError], tuple[int, str]] = {
    errors.MalformedBodyError: (400, "malformed-body"),
    errors.BodyTooLargeError: (413, "body-too-large"),
    errors.UnsupportedMediaTypeError: (415, "unsupported-media-type"),
    errors.InvalidParametersError: (422, "invalid-parameters"),
    errors.QueueFullError: (429, "queue-full"),
    errors.DeadlineError: (429, "deadline-cannot-be-met"),
    errors.InferenceError: (500, "inference-failed"),
    errors.NotReadyError: (503, "not-ready"),
}

log = logging.getLogger(__name__)


async def on_serve_error(request: Request, error: Exception) -> JSONResponse:
    """Any error of our tree."""
    assert isinstance(error, ServeError), f"registered for {type(error)}"
    status, slug = STATUSES[type(error)]
    headers = {}
    if isinstance(error, RetryableError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    fields = error.errors if isinstance(error, RequestError) else ()
    return _problem(status, slug, str(error), fields, headers)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """A path that does not exist, or a method that it does not have."""
    assert isinstance(error, HTTPException), f"registered for {type(error)}"
    detail = f"{request.method} {request.url.path}: {error.detail}"
    slug = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    return _problem(error.status_code, slug, detail, headers=error.headers)


async def on_bug(request: Request, error: Exception) -> JSONResponse:
    """What nobody foresaw: the server logs its trace, the client learns nothing of it."""
    log.error("%s %s failed", request.method, request.url.path)
    return _problem(500, "internal-error", "the gateway failed; its log says why")


def _problem(
    status: int,
    slug: str,
    detail: str,
    fields: Iterable[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    content: dict[str, object] = {
        "type": f"urn:singlepass:problem:{slug}",
        "title": slug.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
    }
    if fields:
        content["errors"] = [{"name": field.name, "detail": field.detail} for field in fields]
    return JSONResponse(content, status, headers=headers, media_type=MEDIA_TYPE)
