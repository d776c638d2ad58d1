"""A picture on a CPU: the exported graph in ONNX Runtime against torch eager, and what gives what.

    python benchmarks/export_cpu.py --student STUDENT_DIRECTORY --threads 1 2

Batch 1, tokens and noise in, levels out. All run in this process in turn, so that a slow moment of
the machine hits all; the ratio is taken round by round and its median told.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime import GraphOptimizationLevel

from export.gate.quantize import Int8Limits, quantize_int8
from export.graph.module import OneStepGraph
from export.graph.to_onnx import write_onnx
from export.model.student import load_student
from export.signature import text_to_image

Feeds = dict[str, np.ndarray[Any, Any]]
LEVELS = {
    "no rewriting": GraphOptimizationLevel.ORT_DISABLE_ALL,
    "+ basic (constants, dead nodes)": GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "+ extended (fusions)": GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "+ layout (blocked channels)": GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all, as served": GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def session(file: Path, threads: int, level: GraphOptimizationLevel, **entries: str) -> Any:
    """ONNX Runtime's CPU provider with a level of rewriting and further settings."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = level
    options.log_severity_level = 3
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def rows(student: Any, count: int) -> Feeds:
    """Inputs of `count` pictures."""
    tokenizers = (student.pipeline.tokenizer, student.pipeline.tokenizer_2)
    prompts = ["a small red circle on the left", "a large blue square"] * (count // 2)
    ids = [
        tokenizer(prompts, padding="max_length", max_length=77, return_tensors="np").input_ids
        for tokenizer in tokenizers
    ]
    shape = (count, student.latent_channels, student.latent_size, student.latent_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
    return {"input_ids": ids[0], "input_ids_2": ids[1], "noise": noise}


def calls(
    graph: OneStepGraph, file: Path, int8: Path, threads: int, one: Feeds
) -> dict[str, Callable[[], Any]]:
    """Everything that is compared, by name; each draws one picture."""
    tensors = [torch.from_numpy(value) for value in one.values()]
    all_levels = GraphOptimizationLevel.ORT_ENABLE_ALL
    sessions = {name: session(file, threads, level) for name, level in LEVELS.items()}
    sessions["all, threads sleep"] = session(
        file, threads, all_levels, session__intra_op__allow_spinning="0"
    )
    sessions["all, int8"] = session(int8, threads, all_levels)
    ours = {name: lambda opened=opened: opened.run(None, one) for name, opened in sessions.items()}
    return {"torch eager": lambda: graph(*tensors), **ours}


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    student = load_student(args.student)
    graph, inputs = OneStepGraph(student), rows(student, 16)
    one = {name: value[:1] for name, value in inputs.items()}
    print(platform.machine(), "; ".join(f"{n} {version(n)}" for n in ("torch", "onnxruntime")))
    with tempfile.TemporaryDirectory() as folder:
        file, int8 = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        signature = text_to_image(student.latent_channels, student.latent_size, student.size_px)
        write_onnx(graph, signature, file)
        int8.write_bytes(file.read_bytes())
        anything = Int8Limits(speedup=0.0, mean_levels=255.0)
        print(quantize_int8(int8, inputs, args.threads[0], anything).sentence())
        for threads in args.threads:
            torch.set_num_threads(threads)
            compared = calls(graph, file, int8, threads, one)
            times: dict[str, list[float]] = {name: [] for name in compared}
            for _ in range(args.rounds + 3):
                for name, call in compared.items():
                    times[name].append(1e3 * seconds(call))
            print(f"| {threads} threads | ms, median | ms, smallest | times as fast as torch |")
            for name, taken in times.items():
                both = zip(times["torch eager"][3:], taken[3:], strict=True)
                gain = statistics.median(eager / ours for eager, ours in both)
                cells = f"{statistics.median(taken[3:]):.2f} | {min(taken):.2f} | {gain:.2f}"
                print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
