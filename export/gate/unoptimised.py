"""ONNX Runtime as the reference: a version's graph, node by node, one picture a call.

It needs no student. It shows what a batch, a fused kernel, an engine or a server does to the
pictures; whether the graph itself draws what the student draws, only torch can say. N rows, H x W
picture size in pixels.
"""

from dataclasses import replace

import numpy as np

from export.errors import ParityError
from export.gate.cases import Cases, plan
from export.gate.measure import draw, is_flat
from export.gate.session import Probe, open_probe, open_session
from export.gate.verify import rows_by_size
from export.gate.version import Version


def onnx_cases(version: Version, rows: int, threads: int) -> tuple[Cases, ...]:
    """The cases of every size with the reference's pictures, which are scanned."""
    plain = open_session(version.graph, threads, optimised=False)
    subjects = version.subjects()
    cases = []
    for size, count in rows_by_size(version.signature, rows).items():
        planned = plan(version.signature, subjects, count, size)
        pictures = np.concatenate([draw(plain, planned, [row]) for row in range(count)])
        cases.append(replace(planned, pictures={"onnx": pictures}))
    probe = open_probe(version.graph, threads)
    for of_size in cases:
        scan_levels(version.label, of_size, probe)
    return tuple(cases)


def scan_levels(label: str, cases: Cases, probe: Probe | None) -> None:
    """The graph's floats must be finite, and its pictures not all of them one flat colour.

    Where the graph does not show its floats, one flat picture is enough for a refusal: that is what
    values that are not finite leave in uint8.
    """
    flat = is_flat(cases.pictures["onnx"])  # [N]
    for row, prompt in enumerate(cases.prompts):
        picture = f"{label}: the picture of {prompt!r}, seed {cases.seeds[row]},"
        if probe is None:
            if flat[row]:
                raise ParityError(f"{picture} is one flat colour, as values not finite leave it")
            continue
        feeds = {name: array[row : row + 1] for name, array in cases.feeds.items()}
        if not np.isfinite(probe(feeds)).all():
            raise ParityError(f"{picture} holds values that are not finite")
    if flat.all():
        raise ParityError(f"{label}: all {len(flat)} pictures are one flat colour")
