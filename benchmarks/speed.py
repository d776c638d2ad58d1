"""Text to PNG, one picture at a time: the teacher's guided steps against the served one-step model.

    python benchmarks/speed.py --teacher examples/shapes/teacher --repository model_repository

Both run in this process on the same threads, alternately, so that a slow minute of the machine hits
both. The teacher is stock diffusers; the one-step model runs through the gateway's own code.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

from serve.generate import time_pictures
from serve.settings import Settings


def teacher_s(pipe: StableDiffusionXLPipeline, prompt: str, steps: int, guidance: float) -> float:
    """Seconds of one picture in stock diffusers, from text to the bytes of a PNG."""
    start = time.perf_counter()
    picture = pipe(prompt, num_inference_steps=steps, guidance_scale=guidance).images[0]
    picture.save(io.BytesIO(), "PNG", compress_level=1, compress_type=3)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--model", help="needed where the repository holds several")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    pipe = StableDiffusionXLPipeline.from_pretrained(args.teacher, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    settings = Settings(repository=args.repository, model=args.model)
    prompt = "a small red circle on the left"
    teacher_s(pipe, prompt, 2, args.guidance)  # warm-up
    many, one = [], []
    for _ in range(args.rounds):
        many.append(teacher_s(pipe, prompt, args.steps, args.guidance))
        one.extend(time_pictures(settings, 5, prompt))
    ratio = statistics.median(many) / statistics.median(one)
    libraries = ("torch", "diffusers", "onnxruntime")
    print(platform.processor() or platform.machine(), torch.get_num_threads(), "threads;", end=" ")
    print(", ".join(f"{name} {version(name)}" for name in libraries))
    print(f"teacher, {args.steps} guided steps: {1e3 * statistics.median(many):.1f} ms")
    print(f"one step, as served:          {1e3 * statistics.median(one):.2f} ms")
    print(f"ratio: {ratio:.0f}")


if __name__ == "__main__":
    main()
