"""The bodies that ask for pictures, and one sentence for everything that is wrong with one."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from serve.errors import FieldError, InvalidParametersError, MalformedBodyError
from serve.images import FileFormat, Format
from serve.noise import MAX_SEED

MOST_FAULTS = 20  # that one answer names
MODEL = "a model that is served, by name, or by name and version as in shapes/1"

OneStep = Annotated[int, Field(ge=1, le=1)]
Prompt = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")]

# Parameters of other generators, and why there is no such thing here.
FROM_NOISE = "pictures are made from noise alone"
DISTILLED = "guidance was distilled into the student and cannot be changed"
NOT_SUPPORTED = {
    "negative_prompt": "a one-step student has no guidance for a negative prompt to act on",
    "guidance_scale": DISTILLED,
    "cfg_scale": DISTILLED,
    "scheduler": "one step has no schedule",
    "sampler": "one step has no sampler",
    "strength": FROM_NOISE,
    "image": FROM_NOISE,
    "init_image": FROM_NOISE,
    "mask": FROM_NOISE,
    "width": "the size is one parameter, as in size: 64x64",
    "height": "the size is one parameter, as in size: 64x64",
}


class Body(BaseModel):
    """One request. Types are strict: "5" is no number, 5.0 and true are no integers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    not_supported: ClassVar[dict[str, str]]


class GenerateRequest(Body):
    """The body of POST /generate; the model takes either a prompt or a class_label."""

    not_supported = NOT_SUPPORTED | {
        "n": "the number of pictures is called num_images",
        "batch_size": "the number of pictures is called num_images",
        "output_format": "the format is called format",
        "response_format": "send Accept: application/json for pictures in JSON",
        "class": "the class is called class_label",
        "class_labels": "the class is called class_label, one for all pictures",
    }

    prompt: Prompt | None = Field(None, description="required, unless the model draws classes")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="drawn at random if not given")
    num_images: int = Field(1, ge=1, description="picture i has the seed `seed` + i")
    size: str | None = Field(None, pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$", description="WxH in px")
    format: Format = Field("png", description="if not given, the image that Accept likes best")
    quality: int | None = Field(None, ge=1, le=100, description="jpeg and webp only")
    model: str | None = Field(None, description=MODEL)
    class_label: int | None = Field(
        None, ge=0, description="required of a model that draws classes, in place of a prompt"
    )
    steps: OneStep | None = Field(None, description="1, as every picture takes one step")
    num_inference_steps: OneStep | None = Field(None, description="the same as steps")


class ImagesRequest(Body):
    """The body of POST /v1/images/generations: OpenAI's, with `seed` as an extension."""

    not_supported = NOT_SUPPORTED | {
        "num_images": "the number of pictures is called n",
        "format": "the format is called output_format",
        "steps": "every picture takes one step",
        "style": "the student has one style; say it in the prompt",
        "moderation": "the gateway does not moderate",
        "partial_images": "one step has no partial pictures",
        "class_label": "the prompt names the class, by its name or its number",
    }

    prompt: Prompt = Field(description="of a model that draws classes: one's name or number")
    model: str | None = Field(None, description=MODEL)
    n: int | None = Field(None, ge=1, description="1 if not given; i has the seed `seed` + i")
    size: str | None = Field(
        None, pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$", description="auto, or WxH in px"
    )
    response_format: Literal["b64_json"] | None = None
    output_format: FileFormat | None = Field(None, description="png if not given")
    output_compression: int | None = Field(
        None, ge=1, le=100, description="quality of jpeg and webp"
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="drawn at random if not given")
    user: str | None = Field(None, max_length=512, description="accepted and not used")
    # what happens anyway, so that a client may say it
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: Literal[False] | None = None


B = TypeVar("B", bound=Body)


def parse_body(body: bytes, kind: type[B]) -> B:
    """A request from JSON; raises MalformedBodyError or InvalidParametersError."""
    if not body.strip():
        raise MalformedBodyError("the body is empty; send a JSON object with a prompt")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            reason = first["msg"].removeprefix("Invalid JSON: ")
            raise MalformedBodyError(f"the body is not JSON: {reason}") from None
        if first["type"] == "model_type":
            raise MalformedBodyError("the body is JSON, but not an object") from None
        raise _refusal(error, kind, from_json(body)) from None


def parse_fields(fields: Mapping[str, object]) -> GenerateRequest:
    """A request from Python values; raises InvalidParametersError."""
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error, GenerateRequest, fields) from None


def _refusal(
    error: ValidationError, kind: type[Body], given: Mapping[str, object]
) -> InvalidParametersError:
    """What is wrong, of many faults the first: an answer is not larger than what it answers.

    Which of the two subjects a model takes is known only when it is asked for.
    """
    count, errors = error.error_count(), error.errors(include_url=False)[:MOST_FAULTS]
    named = [FieldError(str(e["loc"][0])[:80], _reason(e, kind)) for e in errors]
    if count > MOST_FAULTS:
        detail = f"{count} faults, of which the first {MOST_FAULTS} are named"
        named.insert(0, FieldError("body", detail))
    if kind is GenerateRequest and not {"prompt", "class_label"} & given.keys():
        detail = "is required (or class_label, of a model that draws classes)"
        named.insert(0, FieldError("prompt", detail))
    return InvalidParametersError.of(*named)


def _reason(error: Any, body: type[Body]) -> str:
    name, kind = str(error["loc"][0]), error["type"]
    if kind == "extra_forbidden":
        known = ", ".join(body.model_fields)
        return f"is not supported: {body.not_supported.get(name, f'the parameters are {known}')}"
    if kind == "missing":
        return "is required"
    value = repr(error["input"])
    got = f"is {value if len(value) <= 60 else value[:57] + '...'}"
    if name == "prompt" and kind == "string_pattern_mismatch":
        return "has control characters; only tab and line breaks are allowed"
    if name == "prompt" and kind == "string_too_short":
        return "is empty"
    if name == "size" and kind == "string_pattern_mismatch":
        return f"{got}, allowed is WIDTHxHEIGHT in pixels, as in 64x64"
    if name == "response_format":
        return f"{got}, allowed is b64_json: the gateway keeps no pictures that a url could name"
    if name in ("steps", "num_inference_steps"):
        return f"{got}, allowed is 1: the student makes its picture in one step"
    return f"{got}: {error['msg'][0].lower()}{error['msg'][1:]}"
