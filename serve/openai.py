"""OpenAI's Images API under /v1: the same pictures in the shape that its clients read."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serve.documentation import IMAGES_DOCS, MODEL_DOCS, MODELS_DOCS
from serve.errors import FieldError, InvalidParametersError
from serve.etag import identity
from serve.generate import Answer, Order, read_order
from serve.manifest import MANIFEST
from serve.model import Model
from serve.plain_route import PlainRoute
from serve.reading import read_body
from serve.routes import (
    CLIENT_CLOSED,
    Gateway,
    asker_of,
    base64_of,
    fill,
    gateway_of,
    note_order,
    origin_headers,
    timing,
)
from serve.schemas import GenerateRequest, ImagesRequest, parse_body
from serve.served import Served
from serve.settings import Settings
from serve.stamps import note
from serve.subject import subject_from_text

# Our name of a field -> OpenAI's.
NAMES = {"num_images": "n", "format": "output_format", "quality": "output_compression"}

router = APIRouter(prefix="/v1", route_class=PlainRoute)


@router.post("/images/generations", openapi_extra=IMAGES_DOCS, response_class=JSONResponse)
async def generations(request: Request) -> Response:
    """Pictures from a prompt, in base64."""
    gateway = gateway_of(request)
    asker = asker_of(request, gateway)
    body = parse_body(await read_body(request, gateway.settings), ImagesRequest)
    served = gateway.repository.get(body.model)
    with served.used():
        order = _order(body, served.model, gateway.settings)
        note_order(request, served, order)
        with _their_names():
            answer = await fill(request, served, identity(order, served.model), order, asker)
    if answer is None:
        return Response(status_code=CLIENT_CLOSED)
    headers = origin_headers(served.model) | {"Server-Timing": timing(request, answer)}
    return JSONResponse(_images(order, answer), headers=headers)


@router.get("/models", openapi_extra=MODELS_DOCS, response_class=JSONResponse)
async def models(request: Request) -> Response:
    """The models that are served."""
    gateway = _for_caller(request)
    data = [_described(gateway, served, served.name) for served in gateway.repository.all()]
    return JSONResponse({"object": "list", "data": data})


@router.get("/models/{id:path}", openapi_extra=MODEL_DOCS, response_class=JSONResponse)
async def one_model(request: Request) -> Response:
    """One model by its name, or by name and version."""
    gateway, name = _for_caller(request), request.path_params["id"]
    return JSONResponse(_described(gateway, gateway.repository.get(name), name))


def _for_caller(request: Request) -> Gateway:
    """The gateway, for who may ask it; raises UnauthorizedError."""
    gateway = gateway_of(request)
    note(request, caller=gateway.callers.identify(request.headers).name)
    return gateway


def _order(body: ImagesRequest, model: Model, settings: Settings) -> Order:
    """The order of a body; raises InvalidParametersError with OpenAI's names.

    There a prompt must be given; it says which class, where the model has classes.
    """
    subject = subject_from_text(body.prompt, model.manifest.classes)
    fields = GenerateRequest(
        prompt=subject if isinstance(subject, str) else None,
        class_label=subject if isinstance(subject, int) else None,
        seed=body.seed,
        num_images=body.n or 1,
        size=None if body.size == "auto" else body.size,
        format=body.output_format or "png",
        quality=body.output_compression,
    )
    with _their_names():
        return read_order(fields, model, settings)


@contextmanager
def _their_names() -> Iterator[None]:
    """What is refused by our name of a field is refused by OpenAI's."""
    try:
        yield
    except InvalidParametersError as error:
        renamed = (FieldError(NAMES.get(e.name, e.name), e.detail) for e in error.errors)
        raise InvalidParametersError.of(*renamed) from None


def _images(order: Order, answer: Answer) -> dict[str, object]:
    """OpenAI's ImagesResponse; each picture's `seed` is an extension."""
    return {
        "created": int(time.time()),
        "data": [
            {"b64_json": data, "seed": seed}
            for data, seed in zip(base64_of(answer), order.seeds, strict=True)
        ],
        "background": "opaque",
        "output_format": order.format,
        "size": order.size,
    }


def _described(gateway: Gateway, served: Served, name: str) -> dict[str, object]:
    """OpenAI's Model object; what follows `owned_by` are extensions."""
    manifest, refusal = served.model.manifest, gateway.repository.refusal(served.name)
    refused = refusal and {"version": refusal.version, "reason": refusal.reason}
    return {
        "id": name,
        "object": "model",
        "created": _created(served.model),
        "owned_by": "singlepass",
        "version": manifest.version,
        "digest": manifest.digest,
        "task": manifest.task,
        **({"classes": manifest.classes.model_dump()} if manifest.classes else {}),
        "sizes": manifest.sizes,
        "max_images": gateway.settings.max_images,
        "default": gateway.repository.is_default(served),
        **({"refused": refused} if refused else {}),
    }


def _created(model: Model) -> int:
    """When the version was written, in seconds since 1970; 0 once its folder is gone."""
    try:
        return int((model.folder / MANIFEST).stat().st_mtime)
    except OSError:
        return 0
