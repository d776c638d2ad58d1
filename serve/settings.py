"""The gateway's settings: one frozen model, filled from SINGLEPASS_* variables and overrides."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serve.errors import SettingsError

PREFIX = "SINGLEPASS_"
HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")

log = logging.getLogger(__name__)


class Settings(BaseModel):
    """What an operator may choose. Field `max_queue` is read from SINGLEPASS_MAX_QUEUE."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    repository: Path = Field(Path("model_repository"), description="folder of models")
    model: str | None = Field(
        None,
        min_length=1,
        description="models to serve, comma separated, the first by default; None: all there are",
    )
    reload_s: float = Field(
        5.0, ge=0, le=86_400, description="seconds between looks for new versions; 0: only at start"
    )
    keys: Path | None = Field(None, description="file of API keys; None: anybody may ask")
    rate: str | None = Field(
        None, min_length=1, description="pictures a key may have in a time, as in 600/minute"
    )
    max_queue: int = Field(64, ge=1, le=65536, description="pictures accepted but not yet answered")
    deadline_ms: int = Field(
        60_000, ge=1, le=86_400_000, description="deadline of a request without X-Deadline-Ms"
    )
    max_images: int = Field(8, ge=1, le=1024, description="pictures in one request")
    max_prompt_chars: int = Field(2_000, ge=1, le=10_000, description="characters in one prompt")
    max_body_bytes: int = Field(65_536, ge=256, le=2**26, description="bytes in one request body")
    body_s: float = Field(10.0, gt=0, le=3600, description="seconds for a body to arrive")
    encode_workers: int = Field(2, ge=1, le=256, description="threads that encode pictures")
    provider: Literal["cpu", "cuda", "tensorrt"] = Field(
        "cpu", description="what ONNX Runtime in this process runs the model on"
    )
    gpu: int = Field(0, ge=0, le=1023, description="which GPU, by CUDA's number")
    engine_cache: Path | None = Field(
        None, description="folder for TensorRT's engines; None: the user's cache folder"
    )
    threads: int = Field(
        0, ge=0, le=1024, description="threads that run the models on a CPU; 0: all cores"
    )
    triton: str | None = Field(None, description="HOST:PORT of Triton's gRPC; None: no Triton")
    triton_in_flight: int = Field(
        32, ge=1, le=65536, description="pictures that Triton holds; the others wait here, in turn"
    )
    drain_s: float = Field(30.0, ge=0, le=3600, description="seconds to finish work after SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe messages that are logged"
    )
    log_format: Literal["text", "json"] = Field("text", description="lines for people or machines")
    log_prompts: bool = Field(False, description="whether prompts stand in the log")
    cors_origins: tuple[str, ...] = Field(
        (), description="web origins that may ask from a browser, comma separated; or *"
    )
    tracing: bool = Field(False, description="send OpenTelemetry traces, as OTEL_* variables say")

    @property
    def models(self) -> tuple[str, ...]:
        """The names in `model`, each once; none: all that the repository holds."""
        named = (part.strip() for part in (self.model or "").split(","))
        return tuple(dict.fromkeys(name for name in named if name))

    @field_validator("model")
    @classmethod
    def _names_one(cls, value: str | None) -> str | None:
        if value is not None and not value.replace(",", "").strip():
            raise ValueError("allowed are names of models, comma separated")
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _is_list(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("triton")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        host, _, port = value.rpartition(":")
        if not HOST.fullmatch(host) or not (port.isdecimal() and 1 <= int(port[:6]) <= 65535):
            raise ValueError("allowed is HOST:PORT, as in triton:8001")
        return value

    @model_validator(mode="after")
    def _queue_holds_one_request(self) -> Self:
        if self.max_images > self.max_queue:
            raise ValueError(
                f"max_images is {self.max_images}, allowed is at most max_queue ({self.max_queue})"
            )
        return self

    @classmethod
    def from_environment(cls, overrides: Mapping[str, object] | None = None) -> Self:
        """Settings from SINGLEPASS_* variables; overrides that are not None come before them.

        Raises SettingsError with one sentence that names the variable (or `--option`), its value
        and what is allowed. A SINGLEPASS_* name that is no setting is logged, not obeyed.
        """
        given = {key: value for key, value in (overrides or {}).items() if value is not None}
        from_env = _environment()
        try:
            return cls.model_validate({**from_env, **given})
        except ValidationError as error:
            names = {key: PREFIX + key.upper() for key in from_env} | {
                key: "--" + key.replace("_", "-") for key in given
            }
            raise SettingsError("; ".join(_sentence(e, names) for e in error.errors())) from None


def _environment() -> dict[str, str]:
    found = {}
    for variable, value in os.environ.items():
        key = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and key in Settings.model_fields:
            found[key] = value
        elif variable.startswith(PREFIX):
            log.warning("%s is ignored: there is no such setting", variable)
    return found


def _sentence(error: Any, names: Mapping[str, str]) -> str:
    """One pydantic error as one sentence with the name that the user wrote."""
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    key = str(error["loc"][0])
    text = str(error["msg"]).removeprefix("Value error, ")
    text = text[0].lower() + text[1:]
    return f"{names.get(key, key)} is {str(error['input'])!r}: {text}"
