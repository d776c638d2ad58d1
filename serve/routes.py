"""POST /generate and the two probes: HTTP in, HTTP out, nothing else."""

import asyncio
import base64
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from serve.accept import JSON, best_format, wants_json
from serve.callers import Caller, Callers
from serve.documentation import GENERATE_DOCS, LIVEZ_DOCS, METRICS_DOCS, READYZ_DOCS
from serve.drain import ELSEWHERE_S, Drain
from serve.errors import DeadlineError, NotReadyError
from serve.etag import entity_tag, identity, matches
from serve.flights import Flight
from serve.generate import Answer, Order, read_order
from serve.images import MEDIA_TYPES
from serve.metrics import Metrics
from serve.model import Model
from serve.plain_route import PlainRoute
from serve.reading import read_body, read_deadline_s
from serve.repository import Repository
from serve.schemas import GenerateRequest, parse_body
from serve.served import Served
from serve.settings import Settings
from serve.stamps import note
from serve.subject import fields_of
from serve.turn import Turn

CLIENT_CLOSED = 499  # nobody reads this answer; it is for the access log


@dataclass(frozen=True)
class Gateway:
    """What the routes need, open between the lifespan's start and end: `app.state.gateway`."""

    settings: Settings
    repository: Repository
    callers: Callers
    metrics: Metrics
    drain: Drain


class Asker(NamedTuple):
    """Who asks for pictures, when it is their turn, and how long they wait for them."""

    caller: Caller
    turn: Turn
    deadline_s: float


router = APIRouter(route_class=PlainRoute)


@router.post("/generate", openapi_extra=GENERATE_DOCS, response_class=Response)
async def generate(request: Request) -> Response:
    """Pictures of a prompt or a class: one as its bytes, several (or on request) as JSON."""
    gateway = gateway_of(request)
    asker = asker_of(request, gateway)
    fields = parse_body(await read_body(request, gateway.settings), GenerateRequest)
    served = gateway.repository.get(fields.model)
    with served.used():
        return await _answer(request, gateway, served, fields, asker)


async def _answer(
    request: Request, gateway: Gateway, served: Served, fields: GenerateRequest, asker: Asker
) -> Response:
    accept = ",".join(request.headers.getlist("accept"))
    if "format" not in fields.model_fields_set:
        fields = fields.model_copy(update={"format": best_format(accept)})
    order = read_order(fields, served.model, gateway.settings)
    note_order(request, served, order)
    as_json = len(order.seeds) > 1 or wants_json(accept)
    key = identity(order, served.model)
    headers = origin_headers(served.model) | {"Vary": "Accept"}
    if order.format == "raw":
        headers["X-Size"] = order.size
    if fields.seed is not None:
        tag = entity_tag(key, JSON if as_json else MEDIA_TYPES[order.format])
        headers["ETag"] = tag
        if matches(request.headers.getlist("if-none-match"), tag):
            gateway.metrics.reused("etag")
            return Response(status_code=304, headers=headers)
    answer = await fill(request, served, key, order, asker)
    if answer is None:
        return Response(status_code=CLIENT_CLOSED)
    headers["Server-Timing"] = timing(request, answer)
    return _as_json(answer, headers) if as_json else _as_bytes(answer, headers)


@router.get("/livez", openapi_extra=LIVEZ_DOCS, response_class=PlainTextResponse)
@router.api_route("/livez", methods=["GET", "HEAD"], include_in_schema=False)
async def livez(request: Request) -> Response:
    """200 as long as the process answers at all."""
    return PlainTextResponse("alive\n")


@router.get("/readyz", openapi_extra=READYZ_DOCS, response_class=PlainTextResponse)
@router.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
async def readyz(request: Request) -> Response:
    """200 if requests are accepted for every model, else a problem that says why not.

    Either names the versions that are refused.
    """
    gateway = gateway_of(request)
    gateway.drain.check()
    why_not, remarks = gateway.repository.why_not(), gateway.repository.remarks()
    if why_not is not None:
        raise NotReadyError("; ".join([why_not, *remarks]), ELSEWHERE_S)
    return PlainTextResponse("\n".join(["ready", *remarks, ""]))


@router.get("/metrics", openapi_extra=METRICS_DOCS, response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """What Prometheus scrapes, also before the models are loaded."""
    content, media_type = request.app.state.metrics.text()
    return Response(content, media_type=media_type)


def gateway_of(request: Request) -> Gateway:
    """The gateway that is open; raises NotReadyError before and after."""
    gateway = request.app.state.gateway
    if gateway is None:
        raise NotReadyError("the model is not loaded", ELSEWHERE_S)
    assert isinstance(gateway, Gateway), f"app.state.gateway is {type(gateway)}"
    return gateway


def asker_of(request: Request, gateway: Gateway) -> Asker:
    """Who asks, by the headers alone; raises UnauthorizedError or InvalidParametersError."""
    caller = gateway.callers.identify(request.headers)
    note(request, caller=caller.name)
    return Asker(caller, caller.turn(request.headers), read_deadline_s(request, gateway.settings))


def note_order(request: Request, served: Served, order: Order) -> None:
    """What is asked for, for the access log."""
    note(
        request,
        model=served.model.label,
        pictures=len(order.seeds),
        seed=order.seeds[0],
        **fields_of(order.subject),
    )


async def fill(
    request: Request, served: Served, key: str, order: Order, asker: Asker
) -> Answer | None:
    """The order's pictures: from the identical order that is in flight, else made now.

    Only orders of one priority are identical: who is in a hurry does not wait behind who is not.
    The caller is charged once it is accepted. None if the client goes away before.
    """
    gateway = gateway_of(request)
    end = time.perf_counter() + asker.deadline_s
    key, charged = f"{key} {asker.turn.priority}", False
    gateway.drain.check()
    while (flight := served.flights.find(key)) is not None:
        served.admission.check_shared(flight.left_s, end - time.perf_counter())
        if not charged:
            gateway.callers.charge(asker.caller, len(order.seeds))
            gateway.metrics.reused("in_flight")
            charged = True
        try:
            return await unless_gone(request, gateway.drain, flight, end - time.perf_counter())
        except DeadlineError:  # who began it had less time than this one
            if time.perf_counter() >= end:
                raise
            gateway.drain.check()
            asker = asker._replace(deadline_s=end - time.perf_counter())
    with ExitStack() as places:
        pictures = len(order.seeds)
        encode_s = served.generator.encode_s(pictures)
        admitted = served.admission.admit(pictures, asker.deadline_s, asker.turn, encode_s)
        wait_s = places.enter_context(admitted)
        if not charged:
            gateway.callers.charge(asker.caller, pictures)
        flight = _begin(served, key, order, asker, wait_s, places.pop_all())
    return await unless_gone(request, gateway.drain, flight)


def _begin(
    served: Served, key: str, order: Order, asker: Asker, wait_s: float, places: ExitStack
) -> Flight[Answer]:
    """Fill an order; it holds its places for as long as its task runs."""
    filling = served.generator.generate(order, asker.deadline_s, asker.turn)
    task = asyncio.ensure_future(filling)
    task.add_done_callback(lambda _: places.close())
    return served.flights.begin(key, task, wait_s)


async def unless_gone(
    request: Request, drain: Drain, flight: Flight[Answer], within_s: float = math.inf
) -> Answer | None:
    """The flight's result; None, and the flight left, if the client goes away before.

    Raises NotReadyError if the gateway stops before.
    """
    gone = asyncio.ensure_future(_gone(request))
    try:
        answer = await flight.result(within_s, (gone, drain.over))
        if answer is None and not gone.done():
            raise NotReadyError("the gateway stops before this could be answered", ELSEWHERE_S)
        return answer
    finally:
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def timing(request: Request, answer: Answer) -> str:
    """Server-Timing of an answer with pictures, in milliseconds; the log gets it too."""
    stages = {
        "queue": answer.queue_s,
        "tokenize": answer.tokenize_s,
        "infer": answer.infer_s,
        "encode": answer.encode_s,
    }
    note(request, **{f"{name}_s": seconds for name, seconds in stages.items()})
    return ", ".join(f"{name};dur={seconds * 1e3:.2f}" for name, seconds in stages.items())


def base64_of(answer: Answer) -> list[str]:
    """The pictures' files in base64."""
    return [base64.b64encode(picture.data).decode("ascii") for picture in answer.pictures]


def origin_headers(model: Model) -> dict[str, str]:
    """Which artefact answers."""
    return {"X-Model": model.label, "X-Digest": model.manifest.digest}


def _as_bytes(answer: Answer, headers: dict[str, str]) -> Response:
    picture = answer.pictures[0]
    headers = headers | {"X-Seed": str(picture.origin.seed)}
    return Response(picture.data, headers=headers, media_type=MEDIA_TYPES[picture.format])


def _as_json(answer: Answer, headers: dict[str, str]) -> Response:
    first = answer.pictures[0]
    images = [
        {"seed": picture.origin.seed, "image": data}
        for picture, data in zip(answer.pictures, base64_of(answer), strict=True)
    ]
    content = {
        "model": first.origin.model,
        "digest": first.origin.digest,
        "media_type": MEDIA_TYPES[first.format],
        "images": images,
    }
    return JSONResponse(content, headers=headers)
