"""What the OpenAPI document says of each route: parameters, bodies, every status, with examples.

The errors come from the table in `problems`, so a new one is documented by being there.
"""

from collections.abc import Callable, Iterable
from http import HTTPStatus

from serve import errors, problems
from serve.answer_schemas import ANSWERS, NAMED, STRING, Docs
from serve.errors import FieldError, RetryableError, ServeError
from serve.images import MEDIA_TYPES
from serve.problems import STATUSES, V1_STATUSES
from serve.schemas import Body, GenerateRequest, ImagesRequest
from serve.stamps import REQUEST_ID, REQUEST_ID_HEADER

EXAMPLE_ID = "7f3a9c0e5d1b4e1f8f0c2b6a9d4e7c31"
EXAMPLE_DIGEST = "dd9a41cea7592db4040fe197a1255812bf7f567c0b0aca5e4cf4584cbf67fae4"
EXAMPLE_PNG = "iVBORw0KGgo="  # the first bytes of any
EXAMPLE_FIELD = FieldError("seed", "is -1: input should be greater than or equal to 0")
EXAMPLE_MODEL = {
    "id": "shapes",
    "object": "model",
    "created": 1_790_000_000,
    "owned_by": "singlepass",
    "version": 1,
    "digest": EXAMPLE_DIGEST,
    "task": "text-to-image",
    "sizes": ["64x64"],
    "max_images": 8,
    "default": True,
}

ALWAYS = (errors.InvalidParametersError,)  # for the request's id
READY = (*ALWAYS, errors.NotReadyError)
KEYED = (*READY, errors.UnauthorizedError)
KEY_SCHEMES: Docs = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "an API key, where the gateway has a file of keys",
    }
}
KEY_OR_NONE: list[Docs] = [{}, {"key": []}]


def _headers(**described: str) -> Docs:
    """Headers of an answer; every answer has the request's id and the time it took."""
    everywhere = {
        REQUEST_ID_HEADER: "the request's id",
        "Server-Timing": "milliseconds: total, and of pictures queue, tokenize, infer, encode",
    }
    named = everywhere | {name.replace("_", "-"): text for name, text in described.items()}
    return {name: {"description": text, "schema": STRING} for name, text in named.items()}


ORIGIN = {"X_Model": "name and version", "X_Digest": "SHA-256 that identifies the artefact"}
ETAG = {"ETag": "strong; where the request had a seed", "Vary": "Accept"}


def _named(name: str) -> Docs:
    """The schema with this name, which stands once in the document: clients make one type of it."""
    return {"$ref": NAMED + name}


def _json(name: str, example: object) -> Docs:
    return {"application/json": {"schema": _named(name), "example": example}}


def _body(kind: type[Body], examples: dict[str, Docs]) -> Docs:
    named = {name: {"value": value} for name, value in examples.items()}
    content = {"schema": _named(kind.__name__), "examples": named}
    return {"required": True, "content": {"application/json": content}}


def _parameter(name: str, text: str, schema: Docs, where: str = "header") -> Docs:
    required = where == "path"
    return {"name": name, "in": where, "required": required, "description": text, "schema": schema}


REQUEST_ID_PARAMETER = _parameter(
    REQUEST_ID_HEADER,
    "comes back with the answer; made up if not given",
    {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"},
)
DEADLINE = _parameter(
    "X-Deadline-Ms",
    "refused at once if it cannot be met",
    {"type": "integer", "minimum": 1, "maximum": 86_400_000},
)
PRIORITY = _parameter(
    "X-Priority",
    "what waits as batch lets what waits as interactive go first, most of the time",
    {"type": "string", "enum": ["interactive", "batch"], "default": "interactive"},
)
IF_NONE_MATCH = _parameter("If-None-Match", "304 if it lists the ETag; needs a seed", STRING)


def _refusals(kinds: Iterable[type[ServeError]], v1: bool = False) -> Docs:
    """The answers to errors of these kinds, and to bugs, by status."""
    rows = [(*STATUSES[kind], kind) for kind in kinds] + [(*problems.BUG[:2], ServeError)]
    answers: Docs = {}
    media_type = "application/json" if v1 else problems.MEDIA_TYPE
    schema = _named("Error" if v1 else "Problem")
    for status, slug, kind in rows:
        shown = V1_STATUSES.get(status, status) if v1 else status
        answer = answers.setdefault(
            str(shown),
            {
                "description": HTTPStatus(shown).phrase,
                "headers": _headers(),
                "content": {media_type: {"schema": schema, "examples": {}}},
            },
        )
        if issubclass(kind, RetryableError):
            answer["headers"] |= _headers(Retry_After="whole seconds, 1 at least")
        if kind is errors.UnauthorizedError:
            answer["headers"] |= _headers(WWW_Authenticate="Bearer")
        answer["content"][media_type]["examples"][slug] = {"value": _example(shown, slug, kind, v1)}
    return answers


def _example(status: int, slug: str, kind: type[ServeError], v1: bool) -> Docs:
    detail = problems.BUG[2] if kind is ServeError else str(kind.__doc__).partition("\n")[0]
    fields: tuple[FieldError, ...] = ()
    if kind is errors.InvalidParametersError:
        fields = (EXAMPLE_FIELD,)
        detail = f"{EXAMPLE_FIELD.name}: {EXAMPLE_FIELD.detail}"
    if v1:
        return problems.v1_error(status, slug, detail, fields)
    return problems.problem(status, slug, detail, fields, EXAMPLE_ID)


def _picture(media_type: str) -> Docs:
    return {"schema": {"type": "string", "format": "binary", "contentMediaType": media_type}}


GENERATE_DOCS: Docs = {
    "parameters": [REQUEST_ID_PARAMETER, DEADLINE, PRIORITY, IF_NONE_MATCH],
    "security": KEY_OR_NONE,
    "requestBody": _body(
        GenerateRequest,
        {
            "one picture": {"prompt": "a small red circle on the left", "seed": 1},
            "several": {"prompt": "a red shape", "num_images": 4, "format": "webp", "quality": 80},
            "of a class": {"class_label": 207, "seed": 1, "model": "imagenet64"},
        },
    ),
    "responses": {
        "200": {
            "description": "One picture as its bytes; several, or by Accept, as JSON",
            "headers": _headers(
                X_Seed="the seed, of one picture", X_Size="WxH of raw pixels", **ORIGIN, **ETAG
            ),
            "content": {kind: _picture(kind) for kind in MEDIA_TYPES.values()}
            | _json(
                "Pictures",
                {
                    "model": "shapes/1",
                    "digest": EXAMPLE_DIGEST,
                    "media_type": "image/png",
                    "images": [{"seed": 1, "image": EXAMPLE_PNG}],
                },
            ),
        },
        "304": {
            "description": "The caller has these very bytes; nothing was computed",
            "headers": _headers(**ORIGIN, **ETAG),
        },
        **_refusals(STATUSES),
    },
}
IMAGES_DOCS: Docs = {
    "parameters": [REQUEST_ID_PARAMETER, DEADLINE, PRIORITY],
    "security": KEY_OR_NONE,
    "requestBody": _body(
        ImagesRequest,
        {
            "one picture": {"prompt": "a small red circle on the left", "model": "shapes"},
            "several": {"prompt": "a red shape", "n": 4, "output_format": "jpeg", "seed": 1},
            "of a class": {"prompt": "207", "model": "imagenet64", "seed": 1},
        },
    ),
    "responses": {
        "200": {
            "description": "Pictures in base64; `seed` is an extension",
            "headers": _headers(**ORIGIN),
            "content": _json(
                "Images",
                {
                    "created": 1_790_000_000,
                    "data": [{"b64_json": EXAMPLE_PNG, "seed": 1}],
                    "background": "opaque",
                    "output_format": "png",
                    "size": "64x64",
                },
            ),
        },
        **_refusals(STATUSES, v1=True),
    },
}


def _looked_up(
    name: str, example: Docs, kinds: Iterable[type[ServeError]], *parameters: Docs
) -> Docs:
    """A GET under /v1."""
    found = {
        "description": HTTPStatus.OK.phrase,
        "headers": _headers(),
        "content": _json(name, example),
    }
    responses = {"200": found, **_refusals(kinds, v1=True)}
    return {
        "parameters": [REQUEST_ID_PARAMETER, *parameters],
        "security": KEY_OR_NONE,
        "responses": responses,
    }


MODELS_DOCS = _looked_up("Models", {"object": "list", "data": [EXAMPLE_MODEL]}, KEYED)
MODEL_DOCS = _looked_up(
    "Model",
    EXAMPLE_MODEL,
    (*KEYED, errors.UnknownModelError),
    _parameter("id", "name, or name and version", STRING, "path"),
)


def _probe(example: str, kinds: Iterable[type[ServeError]]) -> Docs:
    text = {"text/plain": {"schema": STRING, "example": example}}
    found = {"description": HTTPStatus.OK.phrase, "headers": _headers(), "content": text}
    responses = {"200": found, **_refusals(kinds)}
    return {"parameters": [REQUEST_ID_PARAMETER], "responses": responses}


LIVEZ_DOCS = _probe("alive\n", ALWAYS)
READYZ_DOCS = _probe("ready\n", READY)
METRICS_DOCS = _probe("# TYPE singlepass_pictures_total counter\n", ALWAYS)


def with_components(document: Callable[[], Docs]) -> Callable[[], Docs]:
    """The application's document with what its routes name: the schemas, and the keys' scheme."""
    bodies = {kind.__name__: kind.model_json_schema() for kind in (GenerateRequest, ImagesRequest)}

    def complete() -> Docs:
        made = document()
        made["components"] = {"schemas": ANSWERS | bodies, "securitySchemes": KEY_SCHEMES}
        return made

    return complete
