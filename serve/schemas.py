"""The body of POST /generate, and one sentence for everything that is wrong with one."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.errors import FieldError, InvalidParametersError, MalformedBodyError
from serve.images import Format
from serve.noise import MAX_SEED

OneStep = Annotated[int, Field(ge=1, le=1)]

# Parameters of other generators, and why there is no such thing here.
NOT_SUPPORTED = {
    "negative_prompt": "a one-step student has no guidance for a negative prompt to act on",
    "guidance_scale": "guidance was distilled into the student and cannot be changed",
    "cfg_scale": "guidance was distilled into the student and cannot be changed",
    "scheduler": "one step has no schedule",
    "sampler": "one step has no sampler",
    "strength": "pictures are made from noise alone",
    "image": "pictures are made from noise alone",
    "init_image": "pictures are made from noise alone",
    "mask": "pictures are made from noise alone",
    "width": "the size is one parameter, as in size: 64x64",
    "height": "the size is one parameter, as in size: 64x64",
    "n": "the number of pictures is called num_images",
    "batch_size": "the number of pictures is called num_images",
    "output_format": "the format is called format",
    "response_format": "send Accept: application/json for pictures in JSON",
}


class GenerateRequest(BaseModel):
    """One request. Types are strict: "5" is no number, 5.0 and true are no integers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: str = Field(min_length=1, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="drawn at random if not given")
    num_images: int = Field(1, ge=1, description="picture i has the seed `seed` + i")
    size: str | None = Field(None, pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$", description="WxH in px")
    format: Format = "png"
    quality: int | None = Field(None, ge=1, le=100, description="jpeg and webp only")
    model: str | None = Field(None, description="only the model that is served")
    steps: OneStep | None = Field(None, description="1, as every picture takes one step")
    num_inference_steps: OneStep | None = Field(None, description="the same as steps")


def parse_body(body: bytes) -> GenerateRequest:
    """A request from JSON; raises MalformedBodyError or InvalidParametersError."""
    if not body.strip():
        raise MalformedBodyError("the body is empty; send a JSON object with a prompt")
    try:
        return GenerateRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            reason = first["msg"].removeprefix("Invalid JSON: ")
            raise MalformedBodyError(f"the body is not JSON: {reason}") from None
        if first["type"] == "model_type":
            raise MalformedBodyError("the body is JSON, but not an object") from None
        raise _refusal(error) from None


def parse_fields(fields: Mapping[str, object]) -> GenerateRequest:
    """A request from Python values; raises InvalidParametersError."""
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> InvalidParametersError:
    return InvalidParametersError.of(
        *(FieldError(str(e["loc"][0])[:80], _reason(e)) for e in error.errors())
    )


def _reason(error: Any) -> str:
    name, kind = str(error["loc"][0]), error["type"]
    if kind == "extra_forbidden":
        known = ", ".join(GenerateRequest.model_fields)
        return f"is not supported: {NOT_SUPPORTED.get(name, f'the parameters are {known}')}"
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
    if name in ("steps", "num_inference_steps"):
        return f"{got}, allowed is 1: the student makes its picture in one step"
    return f"{got}: {error['msg'][0].lower()}{error['msg'][1:]}"
