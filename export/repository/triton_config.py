"""Triton's `config.pbtxt`, made and compared through Triton's own protobuf.

The contract of a model (name, back end, largest batch, inputs, output) is the same for all of its
versions; everything else says how it is served and may change at any time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2 as pb

from export.errors import ExportError, RepositoryError
from export.repository.batching import derive_batching
from export.repository.manifest import GRAPH
from export.signature import Signature, Tensor

FILE = "config.pbtxt"
MODEL_PY = "model.py"
PYTHON_MODEL = Path(__file__).with_name("triton_model.py")  # what a version holds as model.py
TYPES = {"int64": pb.TYPE_INT64, "float32": pb.TYPE_FP32, "uint8": pb.TYPE_UINT8}
RUNTIMES = ("onnxruntime", "tensorrt", "python")
CONTRACT = ("name", "max_batch_size", "input", "output")
NEWEST = 2  # versions that are loaded: the one before answers until the gateways have gone on


@dataclass(frozen=True)
class ServingOptions:
    """How Triton serves a model; none of it changes a picture.

    `versions`: the newest so many, or exactly those. `max_queue`: requests that may wait, 0 for any
    number. `timeout_ms`: a request that has waited longer is rejected, 0 for never; a request may
    ask for less. `threads`: of one call on a CPU, 0 for all cores.
    """

    instances: int = 1
    gpu: bool | None = None  # None: with tensorrt, which has no other device
    versions: int | tuple[int, ...] = NEWEST
    max_queue: int = 128
    timeout_ms: int = 60_000
    warm_up: bool = True
    cuda_graphs: bool = True
    threads: int = 0


DEFAULTS = ServingOptions()


def triton_config(
    name: str,
    signature: Signature,
    max_batch: int,
    runtime: str = "onnxruntime",
    options: ServingOptions = DEFAULTS,
    service_ms: Mapping[int, float] | None = None,
    engines: Mapping[str, str] | None = None,
) -> str:
    """The config of a model for one runtime; `ExportError` names the option that is wrong.

    `service_ms`: milliseconds of one call by batch size; without them Triton batches whatever
    waits. `engines`: file name by compute capability, as in {"9.0": "model.sm90.plan"}.
    """
    _check(runtime, options, engines)
    config = pb.ModelConfig(
        name=name,
        backend=runtime,
        default_model_filename=MODEL_PY if runtime == "python" else GRAPH,
        max_batch_size=max_batch,
        input=[_fields(pb.ModelInput, tensor) for tensor in signature.inputs],
        output=[_fields(pb.ModelOutput, signature.output)],
        version_policy=_version_policy(options.versions),
        response_cache=pb.ModelResponseCache(enable=False),
    )
    _add_batching(config, options, service_ms)
    gpu = runtime == "tensorrt" if options.gpu is None else options.gpu
    group = config.instance_group.add(count=options.instances)
    group.kind = group.KIND_GPU if gpu else group.KIND_CPU
    if runtime == "tensorrt":
        set_engines(config, engines or {})
        _add_profiles(config, signature, max_batch, options)
    elif options.threads:
        config.parameters["intra_op_thread_count"].string_value = str(options.threads)
    if runtime == "python":
        config.parameters["graph"].string_value = GRAPH
    if options.warm_up:
        _add_warm_up(config, signature, max_batch)
    return to_text(config)


def set_engines(config: Any, engines: Mapping[str, str]) -> None:
    """File by compute capability. A GPU that is not listed gets the engine of the lowest one.

    An engine built for compatibility with later hardware runs there; TensorRT refuses any other.
    """
    config.cc_model_filenames.clear()
    for capability, file in engines.items():
        config.cc_model_filenames[capability] = file
    config.default_model_filename = engines[min(engines, key=capability_order)]


def capability_order(capability: str) -> tuple[int, int]:
    """ "9.0" as (9, 0); `ExportError` if it is no compute capability."""
    major, dot, minor = capability.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal()):
        raise ExportError(
            f"the engine's compute capability is {capability!r}; it must be like '9.0'"
        )
    return int(major), int(minor)


def difference(existing: str, wanted: str) -> str | None:
    """The first field of the contract in which two configs differ, in words, or None."""
    old, new = parse(existing), parse(wanted)
    for field in CONTRACT:
        left, right = _text(old, field), _text(new, field)
        if left != right:
            return f"'{left}' there, '{right}' here"
    return None


def keep_pin(existing: Any, wanted: Any) -> Any:
    """`wanted`, serving exactly the versions that `existing` names, if it names any."""
    if existing.version_policy.WhichOneof("policy_choice") == "specific":
        wanted.version_policy.CopyFrom(existing.version_policy)
    return wanted


def parse(text: str) -> Any:
    """The protobuf of a config's text; `RepositoryError` if Triton would not read it."""
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"the existing {FILE} is not a Triton config: {error}") from error


def to_text(config: Any) -> str:
    """The same config is the same bytes."""
    return str(text_format.MessageToString(config))


def _check(runtime: str, options: ServingOptions, engines: Mapping[str, str] | None) -> None:
    if runtime not in RUNTIMES:
        raise ExportError(f"the runtime is {runtime!r}; allowed are {', '.join(RUNTIMES)}")
    if runtime == "tensorrt" and not engines:
        raise ExportError("the runtime is 'tensorrt', but there is no engine; build one first")
    if runtime == "tensorrt" and options.gpu is False:
        raise ExportError("gpu is False; the runtime 'tensorrt' needs a GPU")
    counts = [("instances", options.instances, 1), ("max_queue", options.max_queue, 0)]
    counts += [("timeout_ms", options.timeout_ms, 0), ("threads", options.threads, 0)]
    newest = (options.versions,) if isinstance(options.versions, int) else options.versions
    counts += [("versions", number, 1) for number in newest or (0,)]
    for option, value, least in counts:
        if value < least:
            raise ExportError(f"{option} is {value}; it must be at least {least}")


def _fields(kind: Any, tensor: Tensor) -> Any:
    """A ModelInput or ModelOutput; Triton adds the batch itself and writes -1 for open lengths.

    Triton has no requests without dimensions: one number a picture comes as [1], and is reshaped.
    """
    dims = [-1 if length is None else length for length in tensor.shape]
    made = kind(name=tensor.name, data_type=TYPES[tensor.dtype], dims=dims or [1])
    if not dims:
        made.reshape.SetInParent()
    return made


def _version_policy(versions: int | tuple[int, ...]) -> Any:
    policy = pb.ModelVersionPolicy()
    if isinstance(versions, int):
        policy.latest.num_versions = versions
    else:
        policy.specific.versions.extend(sorted(versions))
    return policy


def _add_batching(
    config: Any, options: ServingOptions, service_ms: Mapping[int, float] | None
) -> None:
    """Dynamic batching with a bounded queue that rejects what has waited too long."""
    batching = config.dynamic_batching
    batching.SetInParent()
    if service_ms is not None:
        derived = derive_batching(service_ms, config.max_batch_size)
        batching.preferred_batch_size.extend(derived.preferred)
        batching.max_queue_delay_microseconds = derived.delay_us
    policy = batching.default_queue_policy
    policy.timeout_action = policy.REJECT
    policy.default_timeout_microseconds = options.timeout_ms * 1000
    policy.allow_timeout_override = True
    policy.max_queue_size = options.max_queue


def _add_profiles(
    config: Any, signature: Signature, max_batch: int, options: ServingOptions
) -> None:
    """One optimization profile per size, and one CUDA graph per size and batch."""
    sizes = _single_sizes(signature)
    if len(sizes) > 1:
        config.instance_group[0].profile.extend(str(index) for index in range(len(sizes)))
    if not options.cuda_graphs:
        return
    cuda = config.optimization.cuda
    cuda.graphs = True
    for single in sizes:
        for batch in range(1, max_batch + 1):
            spec = cuda.graph_spec.add(batch_size=batch)
            for tensor in single.inputs:
                spec.input[tensor.name].dim.extend(tensor.shape)  # as the engine has it


def _add_warm_up(config: Any, signature: Signature, max_batch: int) -> None:
    """Every batch size at the first picture size; alone and the largest batch at the others.

    0 is a valid id of every vocabulary, and a class; the noise is Triton's own random data.
    """
    for index, single in enumerate(_single_sizes(signature)):
        batches = range(1, max_batch + 1) if index == 0 else sorted({1, max_batch})
        height, width, _ = single.output.shape
        for batch in batches:
            sample = config.model_warmup.add(name=f"{width}x{height}, batch {batch}")
            sample.batch_size = batch
            for tensor in single.inputs:
                value = sample.inputs[tensor.name]
                value.data_type = TYPES[tensor.dtype]
                value.dims.extend(tensor.shape or (1,))
                if tensor.dtype == "int64":
                    value.zero_data = True
                else:
                    value.random_data = True


def _single_sizes(signature: Signature) -> list[Signature]:
    """The signature once per picture size, without open dimensions."""
    return [signature.at(size) for size in signature.sizes] or [signature]


def _text(config: Any, field: str) -> str:
    """One field alone, on one line; or that it is unset."""
    alone = type(config)()
    alone.CopyFrom(config)
    for descriptor in config.DESCRIPTOR.fields:
        if descriptor.name != field:
            alone.ClearField(descriptor.name)
    return str(text_format.MessageToString(alone, as_one_line=True)) or f"{field} unset"
