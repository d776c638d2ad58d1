"""A TensorRT engine as a repository knows it: its name, its facts, and where it may be used.

An engine (a file: a plan) belongs to one TensorRT version, one kind of GPU and one graph. The name
carries the GPU's compute capability, so that a version can hold an engine for each kind.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.engine.gpu import nvidia_gpu_found
from export.engine.profiles import Profile, Shape, make_profiles
from export.errors import EngineError
from export.repository.manifest import GRAPH, digest_of, file_records
from export.signature import Signature

__all__ = ["nvidia_gpu_found"]

NAME = re.compile(r"model\.sm(\d+)(\d)\.plan")
# our word: what TensorRT's enum and trtexec call it
HARDWARE = {
    "none": ("NONE", "none"),
    "ampere_plus": ("AMPERE_PLUS", "ampere+"),
    "same_compute_capability": ("SAME_COMPUTE_CAPABILITY", "sameComputeCapability"),
}
AMPERE = (8, 0)
LEVELS = range(6)  # TensorRT's optimization levels
MIB_PER_GIB = 1024


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built; None leaves the choice to TensorRT."""

    workspace_gib: float | None = None
    optimization_level: int | None = None
    tf32: bool = False  # float32 products with 10 bits of mantissa: faster, and not what is stated
    refit: bool = False  # may later take other weights
    strip_weights: bool = False  # the plan holds no weights until it is refitted
    version_compatible: bool = False  # later TensorRT versions may open it
    hardware: str = "none"
    timing_cache: Path | None = None  # beside the model's versions if None


@dataclass(frozen=True)
class EngineFacts:
    """What a manifest says of one engine. `model_sha256` is `onnx_digest` of its graph."""

    file: str
    sha256: str
    bytes: int
    model_sha256: str
    gpu: str
    capability: str
    driver: str
    tensorrt: str
    seconds: float
    host_peak_bytes: int
    device_memory_bytes: int  # activations of one execution context, the largest profile's
    profiles: tuple[Profile, ...]
    options: EngineOptions

    def to_json(self) -> dict[str, Any]:
        """For the manifest; the place of the timing cache is no fact of the engine."""
        options = {key: value for key, value in asdict(self.options).items() if value is not None}
        options.pop("timing_cache", None)
        profiles = [profile.to_json() for profile in self.profiles]
        return {**vars(self), "profiles": profiles, "options": options}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "EngineFacts":
        """The inverse of `to_json`; `EngineError` names a key that is missing or unknown."""
        try:
            profiles = tuple(Profile.from_json(profile) for profile in value["profiles"])
            options = EngineOptions(**value["options"])
            return cls(**{**value, "profiles": profiles, "options": options})
        except (KeyError, TypeError) as error:
            raise EngineError(f"these are not the facts of an engine: {error}") from error


@dataclass(frozen=True)
class Here:
    """The place where an engine is to be used, and the graph it is to stand for."""

    tensorrt: str
    gpu: str
    capability: str
    model_sha256: str


def engine_name(capability: str) -> str:
    """`9.0` -> `model.sm90.plan`."""
    major, minor = _numbers(capability)
    return f"model.sm{major}{minor}.plan"


def capability_of(name: str) -> str:
    """`model.sm90.plan` -> `9.0`: the last digit is the minor number."""
    match = NAME.fullmatch(name)
    if match is None:
        raise EngineError(f"{name!r} is no engine's name; one looks like model.sm90.plan")
    return f"{match[1]}.{match[2]}"


def onnx_digest(onnx: Path) -> str:
    """sha256 over the `sha256sum` lines of the graph and of the weights beside it."""
    files = [onnx, onnx.with_name(f"{onnx.name}.data")]
    return digest_of(file_records(file for file in files if file.is_file()))


def check_options(options: EngineOptions) -> None:
    """`EngineError` names the option that cannot be, its value and what is allowed."""
    if options.workspace_gib is not None and not options.workspace_gib > 0:
        raise EngineError(f"workspace_gib is {options.workspace_gib}; it must be above 0")
    level = options.optimization_level
    if level is not None and level not in LEVELS:
        raise EngineError(f"optimization_level is {level}; it must lie between 0 and {LEVELS[-1]}")
    if options.hardware not in HARDWARE:
        raise EngineError(f"hardware is {options.hardware!r}; allowed are {', '.join(HARDWARE)}")


def check_engine(facts: EngineFacts, here: Here) -> None:
    """`EngineError` names both sides if the engine is not for this place or this graph."""
    if facts.model_sha256 != here.model_sha256:
        raise EngineError(
            f"{facts.file} was built from the graph {facts.model_sha256[:12]}, but the graph here "
            f"is {here.model_sha256[:12]}; refit it or build another"
        )
    if not _version_fits(facts, here.tensorrt):
        raise EngineError(
            f"{facts.file} was built with TensorRT {facts.tensorrt}, but TensorRT "
            f"{here.tensorrt} is here; build it again with {here.tensorrt}"
        )
    if not _gpu_fits(facts, here.capability):
        raise EngineError(
            f"{facts.file} was built on {facts.gpu} (compute capability {facts.capability}), but "
            f"{here.gpu} (compute capability {here.capability}) is here; build it again here"
        )
    if facts.options.strip_weights:
        raise EngineError(f"{facts.file} holds no weights; refit it from its graph before its use")


def engine_advice(folder: Path, signature: Signature, max_batch: int, gpu: bool) -> str:
    """One line: whether there is a GPU, and the command that builds the engine."""
    found = "an NVIDIA GPU was found" if gpu else "no NVIDIA GPU was found"
    where = "here, if it will serve" if gpu else "on the machine that will serve"
    profiles = make_profiles(signature, max_batch)
    return (
        f"{found}; no TensorRT engine was built. To build one {where}: distill engine, or "
        f"{build_command(folder / GRAPH, Path('model.plan'), profiles, EngineOptions())}"
    )


def build_command(
    onnx: Path, plan: Path, profiles: Sequence[Profile], options: EngineOptions
) -> str:
    """The `trtexec` line that builds the same engine: same profiles, same options."""
    words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={plan}", "--stronglyTyped"]
    words += ["--skipInference", *_option_words(options)]
    for index, profile in enumerate(profiles):
        words += [f"--profile={index}"] if len(profiles) > 1 else []
        for place, key in enumerate(("min", "opt", "max")):
            shapes = {name: triple[place] for name, triple in profile.shapes.items()}
            words.append(f"--{key}Shapes={_spelled(shapes)}")
    return shlex.join(words)


def _option_words(options: EngineOptions) -> list[str]:
    words = []
    if options.workspace_gib is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_gib * MIB_PER_GIB:g}M")
    if options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.hardware != "none":
        words.append(f"--hardwareCompatibilityLevel={HARDWARE[options.hardware][1]}")
    if options.timing_cache is not None:
        words.append(f"--timingCacheFile={options.timing_cache}")
    flags = {
        "--noTF32": not options.tf32,
        "--refit": options.refit,
        "--stripWeights": options.strip_weights,
        "--versionCompatible": options.version_compatible,
    }
    return words + [flag for flag, wanted in flags.items() if wanted]


def _spelled(shapes: Mapping[str, Shape]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _version_fits(facts: EngineFacts, here: str) -> bool:
    """The same version; or a later one, for an engine that was built to be taken along."""
    if facts.tensorrt == here:
        return True
    return facts.options.version_compatible and _numbers(facts.tensorrt) <= _numbers(here)


def _gpu_fits(facts: EngineFacts, here: str) -> bool:
    """The same compute capability; or any from Ampere on, for an engine built for all of them."""
    if facts.capability == here:
        return True
    return facts.options.hardware == "ampere_plus" and _numbers(here) >= AMPERE


def _numbers(dotted: str) -> tuple[int, ...]:
    """`10.16.1.11` as numbers that compare."""
    if not re.fullmatch(r"\d+(\.\d+)+", dotted):
        raise EngineError(f"{dotted!r} is no version or compute capability, as 9.0 is one")
    return tuple(int(part) for part in dotted.split("."))
