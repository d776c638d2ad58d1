"""OpenAI's Images API under /v1: the same pictures in the shape that its clients read."""

import time

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serve.documentation import IMAGES_DOCS, MODEL_DOCS, MODELS_DOCS
from serve.errors import FieldError, InvalidParametersError, UnknownModelError
from serve.etag import identity
from serve.generate import Answer, Order, read_order
from serve.manifest import MANIFEST
from serve.model import Model
from serve.routes import (
    CLIENT_CLOSED,
    Gateway,
    base64_of,
    fill,
    gateway_of,
    origin_headers,
    read_body,
    read_deadline_s,
    timing,
    unless_gone,
)
from serve.schemas import GenerateRequest, ImagesRequest, parse_body

# Our name of a field -> OpenAI's.
NAMES = {"num_images": "n", "format": "output_format", "quality": "output_compression"}

router = APIRouter(prefix="/v1")


@router.post("/images/generations", openapi_extra=IMAGES_DOCS, response_class=JSONResponse)
async def generations(request: Request) -> Response:
    """Pictures from a prompt, in base64."""
    gateway = gateway_of(request)
    deadline_s = read_deadline_s(request, gateway.settings)
    body = parse_body(await read_body(request, gateway.settings.max_body_bytes), ImagesRequest)
    if body.model is not None:
        _check_model(body.model, gateway.model)
    order = _order(body, gateway)
    key = identity(order, gateway.model)
    answer = await unless_gone(request, gateway.admission, fill(gateway, key, order, deadline_s))
    if answer is None:
        return Response(status_code=CLIENT_CLOSED)
    headers = origin_headers(gateway.model) | {"Server-Timing": timing(answer)}
    return JSONResponse(_images(order, answer), headers=headers)


@router.get("/models", openapi_extra=MODELS_DOCS, response_class=JSONResponse)
async def models(request: Request) -> Response:
    """The model that is served."""
    model = gateway_of(request).model
    return JSONResponse({"object": "list", "data": [_described(model, model.manifest.model)]})


@router.get("/models/{id:path}", openapi_extra=MODEL_DOCS, response_class=JSONResponse)
async def one_model(request: Request) -> Response:
    """One model by its name, or by name and version."""
    gateway, name = gateway_of(request), request.path_params["id"]
    _check_model(name, gateway.model)
    return JSONResponse(_described(gateway.model, name))


def _check_model(name: str, model: Model) -> None:
    if name not in (model.manifest.model, model.label):
        detail = f"is {name[:80]!r}, served is {model.manifest.model}, as {model.label}"
        raise UnknownModelError(f"model: {detail}", (FieldError("model", detail),))


def _order(body: ImagesRequest, gateway: Gateway) -> Order:
    """The order of a body; raises InvalidParametersError with OpenAI's names."""
    fields = GenerateRequest(
        prompt=body.prompt,
        seed=body.seed,
        num_images=body.n or 1,
        size=None if body.size == "auto" else body.size,
        format=body.output_format or "png",
        quality=body.output_compression,
    )
    try:
        return read_order(fields, gateway.model, gateway.settings)
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


def _described(model: Model, name: str) -> dict[str, object]:
    """OpenAI's Model object; version, digest and sizes are extensions."""
    manifest = model.manifest
    return {
        "id": name,
        "object": "model",
        "created": _created(model),
        "owned_by": "singlepass",
        "version": manifest.version,
        "digest": manifest.digest,
        "sizes": manifest.sizes,
    }


def _created(model: Model) -> int:
    """When the version was written, in seconds since 1970; 0 once its folder is gone."""
    try:
        return int((model.folder / MANIFEST).stat().st_mtime)
    except OSError:
        return 0
