"""The parity gate of the exporter: the graph that will be served against torch and diffusers.

Two references, each computed one picture at a time: the task's graph in torch, and stock
diffusers' own one-step call of the pipeline. N rows of cases, H x W picture size in pixels.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from export.errors import ParityError
from export.gate.cases import Cases, Feeds, Infer, Pictures, plan
from export.gate.measure import measure
from export.gate.parity import Limits, Parity
from export.graph.module import to_levels
from export.quiet import quiet
from export.signature import NOISE, Signature, Size
from export.tasks.subjects import Subjects
from export.tasks.task import Graph, Task

__all__ = ["Cases", "Feeds", "Infer", "draw_cases", "draw_every_size", "verify"]

FURTHER_ROWS = 4  # of the sizes after the first


def draw_every_size(
    task: Task, signature: Signature, rows: int, subjects: Subjects | None = None
) -> tuple[Cases, ...]:
    """The cases of each size with both references' pictures."""
    return tuple(
        draw_cases(task, signature, count, size, subjects)
        for size, count in rows_by_size(signature, rows).items()
    )


def rows_by_size(signature: Signature, rows: int) -> dict[Size, int]:
    """`rows` of the default size, up to four of each of those after it."""
    first, *others = signature.sizes
    return {first: rows, **{size: min(rows, FURTHER_ROWS) for size in others}}


def draw_cases(
    task: Task,
    signature: Signature,
    rows: int,
    size: Size | None = None,
    subjects: Subjects | None = None,
) -> Cases:
    """Cases of one size with both references' pictures, which are scanned; `ParityError` says why.

    `subjects` gives the inputs that the graph is fed (the student's own if it is not given).
    """
    cases = plan(signature, subjects or task.subjects(), rows, size)
    drawn = torch.from_numpy(cases.feeds[NOISE])
    noise = [drawn[row : row + 1] for row in range(rows)]
    pictures = {"torch": torch_pictures(task.graph, cases)}
    # that a prompt was cut is said of each; that of ours is long on purpose
    with quiet("diffusers", level=logging.ERROR):
        pictures["stock"] = task.stock(cases.prompts, noise)
    return replace(cases, pictures=pictures)


@torch.no_grad()
def torch_pictures(graph: Graph, cases: Cases) -> Pictures:
    """What the module draws, one picture at a time; scanned as floats before they are rounded."""
    inputs = {name: torch.from_numpy(array) for name, array in cases.feeds.items()}
    pictures = [
        graph.picture(**{name: tensor[row : row + 1] for name, tensor in inputs.items()})
        for row in range(len(cases.seeds))
    ]
    scan(cases.prompts, pictures)
    levels: Pictures = np.concatenate([to_levels(picture).numpy() for picture in pictures])
    return levels


def scan(prompts: Sequence[str], pictures: Sequence[torch.Tensor]) -> None:
    """Float pictures [1, 3, H, W] must be finite, and not all of them one flat colour."""
    for prompt, picture in zip(prompts, pictures, strict=True):
        if not torch.isfinite(picture).all():
            raise ParityError(
                f"the student's picture of {prompt!r} holds values that are not finite"
            )
    if all(picture.float().std(dim=(2, 3)).max() * 127.5 < 1 for picture in pictures):
        raise ParityError(f"all {len(pictures)} pictures of the student are one flat colour")


def verify(
    infer: Infer,
    cases: Cases | Sequence[Cases],
    max_batch: int,
    limits: Limits | None = None,
    subject: str = "the graph does not draw the student's pictures",
) -> Parity:
    """Measure `infer` on the cases at every batch size up to `max_batch`; `ParityError` beyond."""
    every = (cases,) if isinstance(cases, Cases) else cases
    parity = measure(infer, every, max_batch, limits or Limits())
    parity.check(subject)
    return parity
