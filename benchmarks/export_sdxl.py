"""SDXL in full size, on random weights, through the export: memory, time, size of the file.

    python benchmarks/export_sdxl.py --folder runs/sdxl

Each stage runs in a process of its own, so that its peak memory is its own: the pipeline directory
is made part by part, exported as one graph, checked, and opened by ONNX Runtime. The gate is left
out: one picture costs 17 TFLOP. The big files are removed at the end; `--keep` keeps them.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")
TILE = 1 << 22

# The configuration of stabilityai/stable-diffusion-xl-base-1.0; what is not named is a default.
UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
TEXT_2: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}
VOCABULARY = 49408
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 999,
    "set_alpha_to_one": True,
    "clip_sample": False,
}


def fill(model: Any, dtype: Any, seed: int) -> Any:
    """A model made without memory becomes one of random weights in `dtype`, with no other copy.

    Matrices have deviation 1/sqrt(fan-in), scales are one, biases zero: activations stay in range.
    """
    import torch

    torch.nn.Module.to(model, dtype)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    tile = torch.randn(TILE, generator=generator).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                weight.fill_(float(name.endswith("weight")))
                continue
            flat, scale = weight.view(-1), weight[0].numel() ** -0.5
            start = int(torch.randint(TILE, (1,), generator=generator))
            for at in range(0, flat.numel(), TILE):
                part = tile.roll(start + at)[: flat.numel() - at]
                flat[at : at + TILE] = part * scale
        for name, values in model.named_buffers():
            assert name.endswith("position_ids"), name
            values.copy_(torch.arange(values.shape[-1]).expand(values.shape))
    return model.eval()


def make(folder: Path, dtype: str) -> dict[str, Any]:
    """Write the pipeline directory part by part; gives the bytes of weights that the graph uses."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kinds: dict[str, tuple[Any, Any]] = {
        "text_encoder": (CLIPTextModel, CLIPTextConfig(**TEXT, vocab_size=VOCABULARY)),
        "text_encoder_2": (
            CLIPTextModelWithProjection,
            CLIPTextConfig(**TEXT_2, vocab_size=VOCABULARY),
        ),
        "unet": (UNet2DConditionModel, UNET),
        "vae": (AutoencoderKL, VAE),
    }
    counts = {}
    for seed, (name, (kind, config)) in enumerate(kinds.items()):
        with torch.device("meta"):
            model = kind(**config) if isinstance(config, dict) else kind(config)
        fill(model, torch.float32 if name == "vae" else getattr(torch, dtype), seed)
        model.save_pretrained(folder / name, max_shard_size="1GB")
        counts[name] = sum(p.numel() for p in model.parameters())
        del model
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    write_tokenizers(folder)
    return {"parameters": counts}


def write_tokenizers(folder: Path) -> None:
    """Tokenizers of the byte alphabet with CLIP's ids for start and end, and the index."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    words = alphabet + [character + "</w>" for character in alphabet]
    words += [f"<unused {index}>" for index in range(VOCABULARY - 2 - len(words))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        tokenizer = CLIPTokenizer(vocabulary, [], pad_token=pad, model_max_length=77)
        tokenizer.save_pretrained(folder / name)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def export(folder: Path, file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The export's own functions up to the checked file; gives counts and bytes."""
    import onnx
    import torch

    from export.graph.module import OneStepGraph
    from export.graph.sizes import check_sizes, parse_sizes
    from export.graph.to_onnx import write_onnx
    from export.model.foreign import Source
    from export.model.student import load_model
    from export.signature import text_to_image

    clock = time.monotonic()
    dtype, vae_dtype = getattr(torch, args.dtype), getattr(torch, args.vae_dtype)
    student = load_model(Source(folder, dtype=dtype, vae_dtype=vae_dtype))
    sizes = check_sizes(student, parse_sizes(args.sizes))
    signature = text_to_image(student.latent_channels, student.latent_size, student.size_px, sizes)
    graph = OneStepGraph(student)
    loaded_s = time.monotonic() - clock
    write_onnx(graph, signature, file, args.opset)
    vae = student.pipeline.vae
    parts = (graph.text_encoder, graph.text_encoder_2, graph.unet, vae.decoder, vae.post_quant_conv)
    weights = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    written = sum(path.stat().st_size for path in file.parent.iterdir())
    model = onnx.load(str(file), load_external_data=False)
    return {
        "load_s": loaded_s,
        "write_and_check_s": time.monotonic() - clock - loaded_s,
        "cpu_s": time.process_time(),
        "nodes": len(model.graph.node),
        "weights_bytes": weights,
        "file_bytes": written,
        "over_weights": written / weights - 1,
    }


def open_file(file: Path) -> dict[str, Any]:
    """ONNX Runtime's CPU provider opens it, its graph not rewritten; gives the inputs it sees."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return {"inputs": {value.name: value.shape for value in session.get_inputs()}}


def stage(name: str, call: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Run one stage in a fresh process and print what it took."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    start = time.monotonic()
    process = context.Process(target=measured, args=(sender, call, args))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        sys.exit(f"{name} failed with exit code {process.exitcode}")
    process.join()
    print(json.dumps({"stage": name, "wall_s": time.monotonic() - start, **found}), flush=True)
    return found


def measured(sender: Any, call: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> None:
    """In the new process: call, and send the result with the peak of resident memory."""
    faulthandler.enable()
    found = call(*args)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = usage.ru_maxrss * 1024
    sender.send({**found, "peak_gib": peak / 2**30, "processor_s": usage.ru_utime + usage.ru_stime})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for about 14 GB, removed after")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="UNet, text encoders")
    parser.add_argument("--vae-dtype", choices=DTYPES, default="float32")
    parser.add_argument("--sizes", default="1024x1024")
    parser.add_argument("--opset", type=int, default=23)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    pipeline, graph = args.folder / "pipeline", args.folder / "graph"
    graph.mkdir(parents=True, exist_ok=True)
    try:
        if not (pipeline / "model_index.json").is_file():
            stage("make", make, pipeline, args.dtype)
        stage("export", export, pipeline, graph / "model.onnx", args)
        if "bfloat16" not in (args.dtype, args.vae_dtype):  # its CPU provider has no such kernels
            stage("open", open_file, graph / "model.onnx")
    finally:
        if not args.keep:
            shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
