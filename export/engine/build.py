"""ONNX -> TensorRT engine, on the machine whose GPU will serve.

Networks are strongly typed: the graph's own types are the engine's. TensorRT 11 knows no other
kind; TensorRT 10 has to be told.
"""

import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from export.engine.api import (
    Builder,
    IBuilderConfig,
    ICudaEngine,
    INetworkDefinition,
    OnnxParser,
    Trt,
    load_tensorrt,
    member,
    parser_errors,
)
from export.engine.facts import (
    HARDWARE,
    EngineFacts,
    EngineOptions,
    check_options,
    engine_name,
    onnx_digest,
)
from export.engine.gpu import Gpu, find_gpu
from export.engine.log import Log, Progress, Report, attach, start
from export.engine.plan import bytes_of, open_plan, write_whole
from export.engine.profiles import Profile, make_profiles
from export.errors import EngineError
from export.repository.manifest import check_version, signature_of

GIB = 1 << 30
KIB = 1 << 10
NO_MEMORY = ("out of memory", "outofmemory", "insufficient memory")


def build_for_version(
    version: Path,
    scratch: Path,
    options: EngineOptions | None = None,
    *,
    opt_batch: int | None = None,
    report: Report = print,
    trt: Trt | None = None,
    gpu: Gpu | None = None,
) -> tuple[Path, EngineFacts]:
    """The engine of a published version for this GPU, written into `scratch` under its name."""
    manifest = check_version(version)
    gpu = gpu or find_gpu()
    options = options or EngineOptions()
    profiles = make_profiles(signature_of(manifest), manifest["max_batch"], opt_batch)
    plan = scratch / engine_name(gpu.capability)
    onnx = version / manifest["graph"]
    if options.timing_cache is None:
        options = EngineOptions(**{**vars(options), "timing_cache": timing_cache(version, gpu)})
    return plan, build_engine(onnx, plan, profiles, options, report, trt, gpu)


def timing_cache(version: Path, gpu: Gpu) -> Path:
    """Beside the versions of a model, since every one of them profits: `timing.sm90.cache`."""
    return version.parent / engine_name(gpu.capability).replace("model.", "timing.", 1).replace(
        ".plan", ".cache"
    )


def build_engine(
    onnx: Path,
    plan: Path,
    profiles: Sequence[Profile],
    options: EngineOptions,
    report: Report = print,
    trt: Trt | None = None,
    gpu: Gpu | None = None,
) -> EngineFacts:
    """Build `plan` from `onnx` (weights beside it are found); `EngineError` says what is wrong."""
    check_options(options)
    if not onnx.is_file():
        raise EngineError(f"the graph {onnx} does not exist")
    trt = load_tensorrt() if trt is None else trt
    gpu = gpu or find_gpu()
    began = time.monotonic()
    report(f"building {plan.name} with TensorRT {trt.__version__} for {gpu.name}")
    log, progress = attach(Log, trt.ILogger, report), attach(Progress, trt.IProgressMonitor, report)
    builder: Builder = start(trt, trt.Builder, log)
    network, parser = _network(trt, builder, onnx, profiles, log)
    config = _config(trt, builder, options, gpu)
    config.progress_monitor = progress
    _add_profiles(builder, config, profiles)
    _give_timing_cache(config, options.timing_cache, report)
    content = builder.build_serialized_network(network, config)
    del parser  # it held the weights until here
    if progress.interrupted:
        raise KeyboardInterrupt
    if content is None:
        raise EngineError(_why_nothing(trt, plan, gpu, log))
    sha256 = write_whole(plan, bytes_of(content))
    _keep_timing_cache(config, options.timing_cache, report)
    engine, seconds = _opened(trt, plan, log, options), round(time.monotonic() - began, 1)
    report(f"built {plan.name}, {content.nbytes / 1e6:.1f} MB, in {seconds} s")
    return EngineFacts(
        file=plan.name,
        sha256=sha256,
        bytes=content.nbytes,
        model_sha256=onnx_digest(onnx),
        gpu=gpu.name,
        capability=gpu.capability,
        driver=gpu.driver,
        tensorrt=trt.__version__,
        seconds=seconds,
        host_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB,
        device_memory_bytes=engine.device_memory_size_v2,
        profiles=tuple(profiles),
        options=options,
    )


def _network(
    trt: Trt, builder: Builder, onnx: Path, profiles: Sequence[Profile], log: Log
) -> tuple[INetworkDefinition, OnnxParser]:
    """The parsed graph; its inputs must be those that the profiles name."""
    strongly = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser: OnnxParser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        raise EngineError(
            f"TensorRT {trt.__version__} cannot take {onnx}: {parser_errors(parser) or log.said()}"
        )
    found = {network.get_input(index).name for index in range(network.num_inputs)}
    for profile in profiles:
        if found != profile.shapes.keys():
            raise EngineError(
                f"{onnx} has the inputs {', '.join(sorted(found))}; the profile {profile.name} "
                f"is for {', '.join(sorted(profile.shapes))}"
            )
    return network, parser


def _config(trt: Trt, builder: Builder, options: EngineOptions, gpu: Gpu) -> IBuilderConfig:
    """A config with the options set; an option that this TensorRT lacks is refused by name."""
    config = builder.create_builder_config()
    if options.workspace_gib is not None:
        size = int(options.workspace_gib * GIB)
        if size > gpu.memory_bytes:
            raise EngineError(
                f"workspace_gib is {options.workspace_gib:g}; {gpu.name} has "
                f"{gpu.memory_bytes / GIB:.1f} GiB"
            )
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.hardware != "none":
        level = HARDWARE[options.hardware][0]
        config.hardware_compatibility_level = member(
            trt, trt.HardwareCompatibilityLevel, level, f"hardware {options.hardware}"
        )
    if not options.tf32:  # TensorRT's own default is to allow it
        config.clear_flag(trt.BuilderFlag.TF32)
    for flag in _flags(trt, options):
        config.set_flag(flag)
    return config


def _flags(trt: Trt, options: EngineOptions) -> Iterator[Any]:
    """The builder's flags; stripped without refit means that only its own weights come back."""
    if options.refit:
        yield member(trt, trt.BuilderFlag, "REFIT", "refit")
    elif options.strip_weights:
        yield member(trt, trt.BuilderFlag, "REFIT_IDENTICAL", "strip_weights")
    if options.strip_weights:
        yield member(trt, trt.BuilderFlag, "STRIP_PLAN", "strip_weights")
    if options.version_compatible:
        yield member(trt, trt.BuilderFlag, "VERSION_COMPATIBLE", "version_compatible")


def _add_profiles(builder: Builder, config: IBuilderConfig, profiles: Sequence[Profile]) -> None:
    """One after the other: a profile's number in the engine is its place here."""
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, (least, tuned, largest) in profile.shapes.items():
            try:
                made.set_shape(name, least, tuned, largest)
            except ValueError as error:
                raise EngineError(
                    f"TensorRT refuses the shapes {least}, {tuned}, {largest} of {name} in the "
                    f"profile {profile.name}: {error}"
                ) from error
        if config.add_optimization_profile(made) < 0:
            raise EngineError(f"TensorRT refuses the profile {profile.name}: {profile.shapes}")


def _give_timing_cache(config: IBuilderConfig, file: Path | None, report: Report) -> None:
    """The cache of earlier builds if it fits this GPU and version, else an empty one."""
    content = file.read_bytes() if file is not None and file.is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, False):
        return
    report(f"the timing cache {file} is another GPU's or TensorRT's; a new one is begun")
    empty = config.create_timing_cache(b"")
    if empty is not None:
        config.set_timing_cache(empty, False)


def _keep_timing_cache(config: IBuilderConfig, file: Path | None, report: Report) -> None:
    """For the next build; the engine is good without it, so a full disk is only told."""
    cache = config.get_timing_cache()
    if file is None or cache is None:
        return
    try:
        write_whole(file, bytes_of(cache.serialize()))
    except EngineError as error:
        report(f"the next build will take as long: {error}")


def _opened(trt: Trt, plan: Path, log: Log, options: EngineOptions) -> ICudaEngine:
    """The engine as TensorRT opens it again; a plan that does not open is removed."""
    try:
        return open_plan(trt, plan, log, options.version_compatible)
    except EngineError:
        plan.unlink()
        raise


def _why_nothing(trt: Trt, plan: Path, gpu: Gpu, log: Log) -> str:
    """The builder gave nothing: too little memory, or what TensorRT says."""
    said = log.said()
    if any(sign in said.lower() for sign in NO_MEMORY):
        return (
            f"{gpu.name} ({gpu.memory_bytes / GIB:.1f} GiB) has too little memory to build "
            f"{plan.name}; end what else uses it, or take a smaller max_batch, fewer sizes or a "
            f"smaller workspace_gib: {said}"
        )
    return f"TensorRT {trt.__version__} built nothing for {plan.name}: {said}"
