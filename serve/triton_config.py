"""A model's config as a Triton server reports it, against the manifest that lies here.

Triton tells name, batch size, inputs and outputs of what it serves; it tells no checksum of a graph
or an engine, so that other weights of the same shapes cannot be seen from here.
"""

from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType

from serve.manifest import Manifest, Tensor

TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


def difference(config: Any, manifest: Manifest) -> str | None:
    """The first thing in which Triton's config (a protobuf) is not the manifest's, in words."""
    pairs: list[tuple[str, object, object]] = [
        ("name", config.name, manifest.model),
        ("max_batch_size", config.max_batch_size, manifest.max_batch),
        ("inputs", _reported(config.input), _listed(manifest.inputs)),
        ("outputs", _reported(config.output), _listed((manifest.output,))),
    ]
    for what, reported, listed in pairs:
        if reported != listed:
            return f"{what} {reported}, the manifest says {listed}"
    return None


def obeys_deadlines(config: Any) -> bool:
    """Whether a request that waits in Triton's queue is dropped at its own deadline."""
    policy = config.dynamic_batching.default_queue_policy
    return config.HasField("dynamic_batching") and bool(policy.allow_timeout_override)


def priority_levels(config: Any) -> int:
    """How many priorities Triton's queue of the model tells apart; 0 for none."""
    return int(config.dynamic_batching.priority_levels)


def _reported(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    """Type and shape by name, without the batch axis; -1 is an open side."""
    return {tensor.name: (DataType.Name(tensor.data_type), [*tensor.dims]) for tensor in tensors}


def _listed(tensors: tuple[Tensor, ...]) -> dict[str, tuple[str, list[int]]]:
    return {
        tensor.name: (
            TYPES[tensor.dtype],
            # one number a picture is one of one to Triton, which reshapes it
            [-1 if length is None else length for length in tensor.shape[1:]] or [1],
        )
        for tensor in tensors
    }
