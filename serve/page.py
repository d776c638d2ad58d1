"""The page at `/`: type, and the picture follows. Its files lie in `page/`, served as they are."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from serve.etag import matches

FOLDER = "page"
INDEX = "index.html"
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "connect-src 'self'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
    "form-action 'none'",
)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(POLICY),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """One file of the page, with the strong entity tag of its bytes."""

    data: bytes
    media_type: str
    tag: str


@router.api_route("/", methods=["GET", "HEAD"], response_class=Response)
async def index(request: Request) -> Response:
    """The page itself."""
    return _answer(request, INDEX)


@router.api_route("/page/{name}", methods=["GET", "HEAD"], response_class=Response)
async def asset(request: Request) -> Response:
    """What the page consists of; 404 for any other name."""
    return _answer(request, request.path_params["name"])


@functools.cache
def assets() -> Mapping[str, Asset]:
    """The page's files by name, read once."""
    found = {}
    for file in resources.files("serve").joinpath(FOLDER).iterdir():
        suffix = file.name.rpartition(".")[2]
        if suffix in MEDIA_TYPES:
            data = file.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()[:40]}"'
            found[file.name] = Asset(data, MEDIA_TYPES[suffix], tag)
    return MappingProxyType(found)


def _answer(request: Request, name: str) -> Response:
    file = assets().get(name)
    if file is None:
        raise HTTPException(404)
    headers = HEADERS | {"ETag": file.tag}
    if matches(request.headers.getlist("if-none-match"), file.tag):
        return Response(status_code=304, headers=headers)
    return Response(file.data, headers=headers, media_type=file.media_type)
