"""JSON schemas of the answers, for the OpenAPI document, under the names that clients give them."""

from typing import Any

from serve.images import FORMATS, MEDIA_TYPES

Docs = dict[str, Any]

NAMED = "#/components/schemas/"


def object_of(required: dict[str, Docs], optional: dict[str, Docs] | None = None) -> Docs:
    """An object with these properties and no others."""
    properties = required | (optional or {})
    return {"type": "object", "required": list(required), "properties": properties}


STRING: Docs = {"type": "string"}
NULLABLE: Docs = {"type": ["string", "null"]}
NULLABLE_INTEGER: Docs = {"type": ["integer", "null"]}
INTEGER: Docs = {"type": "integer"}
BOOLEAN: Docs = {"type": "boolean"}
BYTES: Docs = {"type": "string", "contentEncoding": "base64"}
PROBLEM = object_of(
    {"type": STRING, "title": STRING, "status": INTEGER, "detail": STRING, "request_id": STRING},
    {"errors": {"type": "array", "items": object_of({"name": STRING, "detail": STRING})}},
)
V1_ERROR = object_of(
    # `param` is always there, but FastAPI leaves a null out of the examples
    {"error": object_of({"message": STRING, "type": STRING, "code": STRING}, {"param": NULLABLE})}
)
PICTURES_JSON = object_of(
    {
        "model": STRING,
        "digest": STRING,
        "media_type": {"enum": list(MEDIA_TYPES.values())},
        "images": {"type": "array", "items": object_of({"seed": INTEGER, "image": BYTES})},
    }
)
V1_IMAGES = object_of(
    {
        "created": INTEGER,
        "data": {"type": "array", "items": object_of({"b64_json": BYTES, "seed": INTEGER})},
        "background": {"const": "opaque"},
        "output_format": {"enum": list(FORMATS)},
        "size": STRING,
    }
)
V1_MODEL = object_of(
    {
        "id": STRING,
        "object": {"const": "model"},
        "created": INTEGER,
        "owned_by": STRING,
        "version": INTEGER,
        "digest": STRING,
        "task": {"enum": ["text-to-image", "class-to-image"]},
        "sizes": {"type": "array", "items": STRING},
        "max_images": INTEGER,
        "default": BOOLEAN,
    },
    {
        "classes": object_of({"count": INTEGER, "names": {"type": "array", "items": STRING}}),
        "refused": object_of({"reason": STRING}, {"version": NULLABLE_INTEGER}),
    },
)
V1_MODELS = object_of(
    {"object": {"const": "list"}, "data": {"type": "array", "items": {"$ref": f"{NAMED}Model"}}}
)
ANSWERS: dict[str, Docs] = {
    "Problem": PROBLEM,
    "Error": V1_ERROR,
    "Pictures": PICTURES_JSON,
    "Images": V1_IMAGES,
    "Model": V1_MODEL,
    "Models": V1_MODELS,
}
