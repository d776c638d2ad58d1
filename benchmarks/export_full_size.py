"""A public model in full size, on random weights, through the export: memory, time, bytes.

    python benchmarks/export_full_size.py --model sdxl --folder runs/sdxl

Each stage runs in a process of its own, so that its peak memory is its own: the pipeline directory
is made part by part, exported as one graph, checked, and opened by ONNX Runtime. The gate is left
out: one picture of 1024 x 1024 costs SDXL 17 TFLOP. `--picture 256x256` has torch and ONNX Runtime
draw one picture each of that size. The big files are removed at the end; `--keep` keeps them.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import string
import sys
import threading
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from full_size_models import MODELS, VOCABULARY, Part

DTYPES = ("float32", "float16", "bfloat16")
TILE = 1 << 22


def fill(model: Any, dtype: Any, seed: int) -> Any:
    """A model made without memory becomes one of random weights in `dtype`, with no other copy.

    Matrices have deviation 1/sqrt(fan-in), scales are one, biases zero: activations stay in range.
    """
    import torch

    torch.nn.Module.to(model, dtype)
    model.to_empty(device="cpu")
    if hasattr(model, "tie_weights"):  # T5's embeddings are named twice
        model.tie_weights()
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
            if name == "pos_embed.pos_embed":
                values.copy_(positions(model.config))
                continue
            assert name.endswith("position_ids"), name
            values.copy_(torch.arange(values.shape[-1]).expand(values.shape))
    return model.eval()


def positions(config: Any) -> Any:
    """Sines and cosines for each patch of the largest picture, [side * side, width]."""
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    return get_2d_sincos_pos_embed(
        config.num_attention_heads * config.attention_head_dim,
        config.pos_embed_max_size,
        base_size=config.sample_size // config.patch_size,
        output_type="pt",
    )


def make(name: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Write the pipeline directory part by part; gives the number of parameters of each."""
    import torch

    model, counts = MODELS[name], {}
    for seed, (part, described) in enumerate(model.parts.items()):
        with torch.device("meta"):
            empty = built(described)
        fill(empty, torch.float32 if part == "vae" else getattr(torch, dtype), seed)
        empty.save_pretrained(folder / part, max_shard_size="1GB")
        counts[part] = sum(p.numel() for p in empty.parameters())
        del empty
    built(model.scheduler).save_pretrained(folder / "scheduler")
    write_tokenizers(folder, model.index)
    (folder / "model_index.json").write_text(json.dumps(model.index, indent=2), encoding="utf-8")
    return {"parameters": counts}


def built(part: Part) -> Any:
    """A part by its configuration, as its library makes it."""
    library, name, config = part
    kind = getattr(importlib.import_module(library), name)
    return kind(kind.config_class(**config)) if library == "transformers" else kind(**config)


def write_tokenizers(folder: Path, parts: Container[str]) -> None:
    """CLIP's of the byte alphabet with CLIP's ids for start and end, T5's of one token a letter."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer, T5Tokenizer

    alphabet = sorted(ByteLevel.alphabet())
    words = alphabet + [character + "</w>" for character in alphabet]
    words += [f"<unused {index}>" for index in range(VOCABULARY - 2 - len(words))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        tokenizer = CLIPTokenizer(vocabulary, [], pad_token=pad, model_max_length=77)
        tokenizer.save_pretrained(folder / name)
    if "tokenizer_3" in parts:
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
        pieces += [(letter, -3.0) for letter in string.ascii_lowercase]
        T5Tokenizer(pieces).save_pretrained(folder / "tokenizer_3")


def export(folder: Path, file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The export's own functions up to the checked file; gives counts and bytes."""
    import onnx

    from export.graph.to_onnx import write_onnx

    clock = time.monotonic()
    task, signature = opened(folder, args)
    loaded_s = time.monotonic() - clock
    write_onnx(task.graph, signature, file, args.opset)
    weights = sum(
        weight.numel() * weight.element_size()
        for name, weight in task.graph.named_parameters()
        if not name.startswith(("vae.encoder.", "vae.quant_conv."))
    )
    written = sum(path.stat().st_size for path in file.parent.iterdir())
    model = onnx.load(str(file), load_external_data=False)
    return {
        "load_s": loaded_s,
        "write_and_check_s": time.monotonic() - clock - loaded_s,
        "nodes": len(model.graph.node),
        "weights_bytes": weights,
        "file_bytes": written,
        "over_weights": written / weights - 1,
    }


def opened(folder: Path, args: argparse.Namespace) -> tuple[Any, Any]:
    """The task as the export opens it, and the signature; a float16 VAE is not watched."""
    import torch

    from export.graph.sizes import parse_sizes
    from export.graph.text_graph import text_graph
    from export.model.foreign import Source
    from export.model.student import load_model
    from export.tasks.text_task import TextTask

    dtype, vae_dtype = getattr(torch, args.dtype), getattr(torch, args.vae_dtype)
    student = load_model(Source(folder, dtype=dtype, vae_dtype=vae_dtype))
    task = TextTask(student, text_graph(student))
    return task, task.signature(parse_sizes(args.sizes))


def open_file(file: Path) -> dict[str, Any]:
    """ONNX Runtime's CPU provider opens it, its graph not rewritten; gives the inputs it sees."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return {"inputs": {value.name: value.shape for value in session.get_inputs()}}


def draw_by_torch(folder: Path, cases: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One picture of `--picture` by the graph's own module, kept with its inputs."""
    import numpy as np
    import torch

    from export.gate.cases import plan
    from export.graph.sizes import parse_sizes

    task, signature = opened(folder, args)
    feeds = plan(signature, task.subjects(), 1, *parse_sizes(args.picture)).feeds
    with torch.no_grad():
        picture = task.graph(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    np.savez(cases, picture=picture.numpy(), **feeds)
    return {"deviation": float(picture.float().std())}


def draw_by_file(file: Path, cases: Path) -> dict[str, Any]:
    """The same picture by ONNX Runtime, no node rewritten: differences to torch's in levels."""
    import numpy as np

    from export.gate.session import open_session

    kept = dict(np.load(cases))
    expected = kept.pop("picture").astype(int)
    gap = np.abs(open_session(file, optimised=False)(kept) - expected)
    return {"shape": gap.shape, "largest_levels": int(gap.max()), "mean_levels": float(gap.mean())}


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
    """In the new process: call, and send the result with the peak of resident memory.

    Files that are mapped count as resident, though the system may drop their pages: `own` are not.
    """
    faulthandler.enable()
    own = [0.0]
    threading.Thread(target=watch_own_gib, args=(own,), daemon=True).start()
    found = call(*args)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peaks = {"peak_gib": usage.ru_maxrss / 2**20, "own_gib": own[0]}
    sender.send({**found, **peaks, "processor_s": usage.ru_utime + usage.ru_stime})


def watch_own_gib(peak: list[float]) -> None:
    """Keep in `peak[0]` the largest memory seen that is mapped from no file, looking often."""
    while True:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]) / 2**20)
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for twice the weights")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="all but the VAE")
    parser.add_argument("--vae-dtype", choices=DTYPES, default="float32")
    parser.add_argument("--sizes", default="1024x1024")
    parser.add_argument("--picture", help="draw one of this size, which must be among --sizes")
    parser.add_argument("--opset", type=int, default=23)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    pipeline, file = args.folder / "pipeline", args.folder / "graph" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not (pipeline / "model_index.json").is_file():
            stage("make", make, args.model, pipeline, args.dtype)
        stage("export", export, pipeline, file, args)
        if "bfloat16" not in (args.dtype, args.vae_dtype):  # its CPU provider has no such kernels
            stage("open", open_file, file)
        if args.picture:
            cases = args.folder / "cases.npz"
            stage("draw by torch", draw_by_torch, pipeline, cases, args)
            stage("draw by the file", draw_by_file, file, cases)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
