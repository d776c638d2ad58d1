"""Triton's `config.pbtxt`, made and compared through Triton's own protobuf."""

from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from export.errors import RepositoryError
from export.manifest import GRAPH
from export.signature import Signature, Tensor

FILE = "config.pbtxt"
TYPES = {
    "int64": model_config_pb2.TYPE_INT64,
    "float32": model_config_pb2.TYPE_FP32,
    "uint8": model_config_pb2.TYPE_UINT8,
}


def triton_config(name: str, signature: Signature, max_batch: int) -> str:
    """ONNX Runtime back end, dynamic batching with sizes left to Triton, the latest version."""
    config = model_config_pb2.ModelConfig(
        name=name,
        backend="onnxruntime",
        default_model_filename=GRAPH,
        max_batch_size=max_batch,
        input=[_fields(model_config_pb2.ModelInput, tensor) for tensor in signature.inputs],
        output=[_fields(model_config_pb2.ModelOutput, signature.output)],
    )
    config.dynamic_batching.SetInParent()
    config.version_policy.latest.num_versions = 1
    return str(text_format.MessageToString(config))


def difference(existing: str, wanted: str) -> str | None:
    """The first field in which two configs differ, in words, or None when they mean the same."""
    old, new = _parse(existing), _parse(wanted)
    for field in new.DESCRIPTOR.fields:
        left, right = _text(old, field.name), _text(new, field.name)
        if left != right:
            return f"'{left}' there, '{right}' here"
    return None


def _fields(kind: Any, tensor: Tensor) -> Any:
    """A ModelInput or ModelOutput; Triton adds the batch itself."""
    return kind(name=tensor.name, data_type=TYPES[tensor.dtype], dims=tensor.shape)


def _parse(text: str) -> Any:
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"the existing {FILE} is not a Triton config: {error}") from error


def _text(config: Any, field: str) -> str:
    """One field alone, on one line; or that it is unset."""
    alone = type(config)()
    alone.CopyFrom(config)
    for descriptor in config.DESCRIPTOR.fields:
        if descriptor.name != field:
            alone.ClearField(descriptor.name)
    return str(text_format.MessageToString(alone, as_one_line=True)) or f"{field} unset"
