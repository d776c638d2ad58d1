"""The parity gate: the graph that will be served against torch, picture by picture.

Two references, each computed one picture at a time: the `OneStepGraph` in torch, and stock
diffusers' own one-step call of the pipeline. Every batch size is tried with mixed rows, with the
same rows in another order and with equal rows. N rows of cases, B batch; a level is one of uint8's
256 steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from export.errors import ParityError
from export.graph import OneStepGraph, to_levels
from export.parity import BatchParity, Limits, Parity
from export.signature import TOKENS, Signature
from export.student import Student

Feeds = Mapping[str, NDArray[np.generic]]
Infer = Callable[[Feeds], NDArray[np.uint8]]

BATCHES = (1, 2, 3, 4, 8)
PROMPTS = (
    "a small red circle on the left",
    "a photograph of an astronaut riding a horse",
    "",
    "two large blue squares",
    "A landscape in autumn, oil on canvas, 1890!",
    "something green",
    "a cat and a dog",
    "x",
)


@dataclass(frozen=True)
class Cases:
    """N rows of inputs, and what both references draw for them: [N, H, W, 3] uint8."""

    feeds: Feeds
    torch_pictures: NDArray[np.uint8]
    stock_pictures: NDArray[np.uint8]


@torch.no_grad()
def draw_cases(student: Student, graph: OneStepGraph, signature: Signature, rows: int) -> Cases:
    """Row i has prompt i (round and round) and the noise of seed i; the pictures are scanned."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(rows)]
    shape = (1, *signature.noise_shape(signature.sizes[0]))
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(rows)]
    ids = [
        tokenizer(
            prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        for tokenizer in (student.pipeline.tokenizer, student.pipeline.tokenizer_2)
    ]
    pictures = [graph.picture(ids[0][i : i + 1], ids[1][i : i + 1], noise[i]) for i in range(rows)]
    scan(prompts, pictures)
    feeds = {"input_ids": ids[0], "input_ids_2": ids[1], "noise": torch.cat(noise)}
    return Cases(
        feeds={name: tensor.numpy() for name, tensor in feeds.items()},
        torch_pictures=to_levels(torch.cat(pictures)).numpy(),
        stock_pictures=_stock_pictures(student, prompts, noise),
    )


def _stock_pictures(
    student: Student, prompts: Sequence[str], noise: Sequence[torch.Tensor]
) -> NDArray[np.uint8]:
    """Stock diffusers, one step, one picture at a time: [N, H, W, 3]."""
    pictures = [
        student.pipeline(
            prompt,
            latents=latents,
            num_inference_steps=1,
            guidance_scale=0.0,
            output_type="np",
        ).images
        for prompt, latents in zip(prompts, noise, strict=True)
    ]
    levels: NDArray[np.uint8] = (np.concatenate(pictures) * 255).round().astype(np.uint8)
    return levels


def scan(prompts: Sequence[str], pictures: Sequence[torch.Tensor]) -> None:
    """Float pictures [1, 3, H, W] must be finite, and not all of them one flat colour."""
    for prompt, picture in zip(prompts, pictures, strict=True):
        if not torch.isfinite(picture).all():
            raise ParityError(
                f"the student's picture of {prompt!r} holds values that are not finite"
            )
    if all(picture.std(dim=(2, 3)).max() * 127.5 < 1 for picture in pictures):
        raise ParityError(f"all {len(pictures)} pictures of the student are one flat colour")


def verify(infer: Infer, cases: Cases, max_batch: int, limits: Limits | None = None) -> Parity:
    """Measure `infer` on the cases at every batch size up to `max_batch`; `ParityError` beyond."""
    limits = limits or Limits()
    sizes = sorted({size for size in (*BATCHES, max_batch) if size <= max_batch})
    rows = len(cases.torch_pictures)
    alone = np.concatenate([_draw(infer, cases, [row]) for row in range(rows)])
    parity = Parity(tuple(_measure(infer, cases, alone, size) for size in sizes), limits)
    faults = parity.faults()
    if faults:
        raise ParityError(f"the graph does not draw the student's pictures: {'; '.join(faults)}")
    return parity


def _measure(infer: Infer, cases: Cases, alone: NDArray[np.uint8], size: int) -> BatchParity:
    """All compositions of one batch size against both references and against `alone`."""
    torch_gap, stock_gap, batch_gap = [], [], []
    for rows in compositions(len(alone), size):
        pictures = _draw(infer, cases, rows)
        torch_gap.append(_gap(pictures, cases.torch_pictures[rows]))
        stock_gap.append(_gap(pictures, cases.stock_pictures[rows]))
        batch_gap.append(_gap(pictures, alone[rows]))
    against_torch, against_stock = np.concatenate(torch_gap), np.concatenate(stock_gap)
    return BatchParity(
        batch=size,
        pictures=len(against_torch) // alone[0].size,
        max_levels=int(against_torch.max()),
        mean_levels=float(against_torch.mean()),
        differing=float((against_torch > 0).mean()),
        stock_max_levels=int(against_stock.max()),
        stock_mean_levels=float(against_stock.mean()),
        invariance_levels=int(np.concatenate(batch_gap).max()),
    )


def compositions(rows: int, size: int) -> Iterator[list[int]]:
    """Every row in turn (wrapping round), the first batch reversed and rotated, and equal rows."""
    for start in range(0, rows, size):
        yield [(start + i) % rows for i in range(size)]
    if size > 1:
        first = [i % rows for i in range(size)]
        yield first[::-1]
        yield first[1:] + first[:1]
        yield [0] * size


def _draw(infer: Infer, cases: Cases, rows: list[int]) -> NDArray[np.uint8]:
    """Run the rows as one batch; type and shape [B, H, W, 3] must be the references' own."""
    pictures = infer({name: np.ascontiguousarray(a[rows]) for name, a in cases.feeds.items()})
    expected = (len(rows), *cases.torch_pictures.shape[1:])
    if pictures.dtype != np.uint8 or pictures.shape != expected:
        raise ParityError(
            f"the graph gives {pictures.dtype} {list(pictures.shape)} for a batch of {len(rows)}; "
            f"it must give uint8 {list(expected)}"
        )
    return pictures


def _gap(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Absolute difference in levels, flat."""
    gap: NDArray[np.int16] = np.abs(left.astype(np.int16) - right.astype(np.int16)).reshape(-1)
    return gap
