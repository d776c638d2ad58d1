"""Which opset to export at: nodes, and ONNX Runtime's time, side by side.

    python benchmarks/export_opsets.py --student STUDENT_DIRECTORY

Two graphs at each opset: the student's whole pipeline, and the UNet of a mid-size SDXL with random
weights. ONNX Runtime's CPU provider draws with all of them in turn, so that a slow moment of the
machine hits all; the smallest time is the least disturbed one.
"""

from __future__ import annotations

import argparse
import collections
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from export.gate.cases import Feeds, Infer
from export.gate.session import open_session
from export.graph.module import OneStepGraph
from export.graph.to_onnx import OPSETS, write_onnx
from export.model.student import load_student
from export.signature import Signature, text_to_image
from export.signature import Tensor as Value

LATENT, WIDTH, POOLED = 32, 512, 256
TOLD = ("Attention", "GroupNormalization", "LayerNormalization", "Gelu", "Softmax")


class MidSize(nn.Module):
    """An SDXL UNet of a thirteenth of the parameters, fed by its noise alone; levels out."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=LATENT,
            block_out_channels=(128, 256, 512),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 4),
            attention_head_dim=(2, 4, 8),
            use_linear_projection=True,
            cross_attention_dim=WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=6 * 32 + POOLED,
        )

    def forward(self, noise: Tensor) -> Tensor:
        batch = noise.shape[0]
        added = {
            "text_embeds": noise.new_zeros(batch, POOLED),
            "time_ids": noise.new_full((batch, 6), 8.0 * LATENT),
        }
        text = noise.mean(dim=(1, 2, 3)).reshape(-1, 1, 1).expand(-1, 77, WIDTH)
        out = self.unet(noise, 999, encoder_hidden_states=text, added_cond_kwargs=added)[0]
        return (out * 40 + 128).clamp(0, 255).round().to(torch.uint8)


def models(student: Path) -> dict[str, tuple[nn.Module, Signature]]:
    """Both graphs, with their signatures."""
    loaded = load_student(student)
    whole = text_to_image(loaded.latent_channels, loaded.latent_size, loaded.size_px)
    shape = (4, LATENT, LATENT)
    alone = Signature((Value("noise", "float32", shape),), Value("image", "uint8", shape))
    return {"student": (OneStepGraph(loaded), whole), "mid-size UNet": (MidSize().eval(), alone)}


def feeds(signature: Signature) -> dict[str, np.ndarray[Any, Any]]:
    """One picture's inputs."""
    random = np.random.RandomState(0)
    return {
        value.name: random.standard_normal((1, *value.shape)).astype(np.float32)
        if value.dtype == "float32"
        else random.randint(0, 200, (1, *value.shape))
        for value in signature.inputs
    }


def seconds(infer: Infer, inputs: Feeds) -> float:
    start = time.perf_counter()
    infer(inputs)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    print(platform.machine(), args.threads, "threads;", end=" ")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "onnx", "onnxruntime")))
    print(
        "| graph | opset | nodes | ms, median | ms, smallest | differs from 18 in levels |", *TOLD
    )
    for name, (model, signature) in models(args.student).items():
        inputs, sessions, counts = feeds(signature), {}, {}
        with tempfile.TemporaryDirectory() as folder:
            for opset in OPSETS:
                file = Path(folder) / f"{opset}.onnx"
                write_onnx(model, signature, file, opset)
                sessions[opset] = open_session(file, args.threads)
                graph = onnx.load(file, load_external_data=False).graph
                counts[opset] = collections.Counter(node.op_type for node in graph.node)
        drawn = {opset: infer(inputs).astype(int) for opset, infer in sessions.items()}
        times: dict[int, list[float]] = {opset: [] for opset in sessions}
        for _ in range(args.rounds):
            for opset, infer in sessions.items():
                times[opset].append(1e3 * seconds(infer, inputs))
        for opset in sessions:
            gap = np.abs(drawn[opset] - drawn[OPSETS[0]]).max()
            row = [name, opset, counts[opset].total(), f"{np.median(times[opset]):.2f}"]
            row += [f"{min(times[opset]):.2f}", gap, *(counts[opset][told] for told in TOLD)]
            print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()
