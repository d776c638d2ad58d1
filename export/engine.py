"""TensorRT: this release exports ONNX only, and names the command that builds the engine."""

import shutil
from pathlib import Path

import torch

from export.manifest import GRAPH
from export.signature import Signature


def nvidia_gpu_found() -> bool:
    """Whether this machine has an NVIDIA GPU, by its driver's tool or by torch."""
    return shutil.which("nvidia-smi") is not None or torch.cuda.is_available()


def engine_advice(folder: Path, signature: Signature, max_batch: int, gpu: bool) -> str:
    """One line: whether there is a GPU, and the command that builds the engine."""
    found = "an NVIDIA GPU was found" if gpu else "no NVIDIA GPU was found"
    where = "here, if it will serve" if gpu else "on the machine that will serve"
    return (
        f"{found}; no TensorRT engine was built (not part of this release). "
        f"To build one {where}: {build_command(folder, signature, max_batch)}"
    )


def build_command(folder: Path, signature: Signature, max_batch: int) -> str:
    """`trtexec` for every batch from 1 to `max_batch`, tuned for the largest."""
    shapes = {
        key: ",".join(
            f"{tensor.name}:{'x'.join(map(str, (batch, *tensor.shape)))}"
            for tensor in signature.inputs
        )
        for key, batch in (("min", 1), ("opt", max_batch), ("max", max_batch))
    }
    options = " ".join(f"--{key}Shapes={value}" for key, value in shapes.items())
    return f"trtexec --onnx={folder / GRAPH} --saveEngine={folder / 'model.plan'} {options}"
