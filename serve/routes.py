"""POST /generate and the two probes: HTTP in, HTTP out, nothing else."""

import asyncio
import base64
from collections.abc import Coroutine
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from serve.admission import ELSEWHERE_S, Admission
from serve.errors import (
    BodyTooLargeError,
    FieldError,
    InvalidParametersError,
    NotReadyError,
    UnsupportedMediaTypeError,
)
from serve.generate import Answer, Generator, Order, read_order
from serve.images import MEDIA_TYPES
from serve.model import Model
from serve.schemas import GenerateRequest, parse_body
from serve.settings import Settings

DEADLINE_HEADER = "X-Deadline-Ms"
MAX_DEADLINE_MS = 86_400_000
CLIENT_CLOSED = 499  # nobody reads this answer; it is for the access log


@dataclass(frozen=True)
class Gateway:
    """What the routes need, open between the lifespan's start and end: `app.state.gateway`."""

    settings: Settings
    model: Model
    generator: Generator
    admission: Admission


router = APIRouter()

GENERATE_DOCS = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": GenerateRequest.model_json_schema()}},
    }
}


@router.post("/generate", openapi_extra=GENERATE_DOCS, response_class=Response)
async def generate(request: Request) -> Response:
    """Pictures from a prompt: one as its bytes, several (or on request) as JSON."""
    gateway = _gateway(request)
    deadline_s = _deadline_s(request, gateway.settings)
    fields = parse_body(await _body(request, gateway.settings.max_body_bytes))
    order = read_order(fields, gateway.model, gateway.settings)
    answer = await _unless_gone(request, gateway.admission, _fill(gateway, order, deadline_s))
    if answer is None:
        return Response(status_code=CLIENT_CLOSED)
    if len(answer.pictures) > 1 or _wants_json(request):
        return _as_json(answer)
    return _as_bytes(answer)


@router.api_route("/livez", methods=["GET", "HEAD"], include_in_schema=False)
async def livez() -> Response:
    """200 as long as the process answers at all."""
    return PlainTextResponse("alive\n")


@router.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
async def readyz(request: Request) -> Response:
    """200 if requests are accepted, else a problem that says why not."""
    _gateway(request).admission.check_ready()
    return PlainTextResponse("ready\n")


def _gateway(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    if gateway is None:
        raise NotReadyError("the model is not loaded", ELSEWHERE_S)
    assert isinstance(gateway, Gateway), f"app.state.gateway is {type(gateway)}"
    return gateway


async def _fill(gateway: Gateway, order: Order, deadline_s: float) -> Answer:
    with gateway.admission.admit(len(order.seeds), deadline_s):
        return await gateway.generator.generate(order)


async def _unless_gone(
    request: Request, admission: Admission, work: Coroutine[None, None, Answer]
) -> Answer | None:
    """The work's result; None, and the work cancelled, if the client goes away before.

    Raises NotReadyError if the gateway stops before.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    stopped = asyncio.ensure_future(admission.stopped.wait())
    try:
        await asyncio.wait({task, gone, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done() and not task.done():
            raise NotReadyError("the gateway stops before this could be answered", ELSEWHERE_S)
        return task.result() if task.done() else None
    finally:
        for waiting in (task, gone, stopped):
            waiting.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, limit_bytes: int) -> bytes:
    """The body; refused by its declared length before it is read, and while it is."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(
            f"Content-Type is {media_type or 'not given'}, allowed is application/json"
        )
    declared = request.headers.get("content-length", "0")
    too_large = BodyTooLargeError(f"the body is too large, allowed are {limit_bytes} bytes")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large
    return body


def _deadline_s(request: Request, settings: Settings) -> float:
    value = request.headers.get(DEADLINE_HEADER)
    if value is None:
        return settings.deadline_ms / 1e3
    if not (value.isascii() and value.isdecimal() and 1 <= int(value[:12]) <= MAX_DEADLINE_MS):
        detail = f"is {value[:60]!r}, allowed is 1 to {MAX_DEADLINE_MS} (milliseconds)"
        raise InvalidParametersError.of(FieldError(DEADLINE_HEADER, detail))
    return int(value) / 1e3


def _wants_json(request: Request) -> bool:
    """Whether Accept lists application/json by name, and not with q=0."""
    for entry in request.headers.get("accept", "").lower().split(","):
        media_type, *parameters = (part.strip() for part in entry.split(";"))
        if media_type == "application/json":
            return "q=0" not in parameters
    return False


def _as_bytes(answer: Answer) -> Response:
    picture = answer.pictures[0]
    headers = {**_headers(answer), "X-Seed": str(picture.origin.seed)}
    return Response(picture.data, headers=headers, media_type=MEDIA_TYPES[picture.format])


def _as_json(answer: Answer) -> Response:
    first = answer.pictures[0]
    images = [
        {"seed": picture.origin.seed, "image": base64.b64encode(picture.data).decode("ascii")}
        for picture in answer.pictures
    ]
    content = {
        "model": first.origin.model,
        "digest": first.origin.digest,
        "media_type": MEDIA_TYPES[first.format],
        "images": images,
    }
    return JSONResponse(content, headers=_headers(answer))


def _headers(answer: Answer) -> dict[str, str]:
    origin = answer.pictures[0].origin
    stages = {
        "queue": answer.queue_s,
        "tokenize": answer.tokenize_s,
        "infer": answer.infer_s,
        "encode": answer.encode_s,
    }
    timing = ", ".join(f"{name};dur={seconds * 1e3:.2f}" for name, seconds in stages.items())
    return {"X-Model": origin.model, "X-Digest": origin.digest, "Server-Timing": timing}
