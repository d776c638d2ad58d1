"""Student directory -> model repository: load, one ONNX graph, the parity gate, publish.

A graph that does not pass the gate is never published, and a stage that fails leaves the
repository as it was.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

import torch

from export.engine import engine_advice, nvidia_gpu_found
from export.errors import ExportError, RepositoryError
from export.graph import OneStepGraph
from export.manifest import (
    GRAPH,
    TOKENIZERS,
    Manifest,
    check_version,
    describe,
    digest_of,
    sha256_of,
)
from export.parity import Parity
from export.repository import check_name, publish, staging, versions
from export.session import open_session
from export.signature import Signature, text_to_image
from export.student import Student, load_student
from export.to_onnx import LARGEST_BATCH, OPSET, write_onnx
from export.tokenizers_json import write_tokenizer
from export.triton_config import triton_config
from export.verify import draw_cases, verify

MEASURED_ROWS = 8
LIBRARIES = ("torch", "diffusers", "transformers", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """A published version: where it lies, what it is, how it was checked, how long it took."""

    folder: Path
    version: int
    digest: str
    parity: Parity
    seconds: dict[str, float]


def export_student(
    student: Path,
    repository: Path,
    name: str,
    *,
    max_batch: int = 8,
    report: Callable[[str], None] = print,
) -> Exported:
    """Publish the student as the next version of model `name`; `ExportError` says what is wrong."""
    check_name(name)
    check_max_batch(max_batch)
    clock = _Clock()
    loaded = load_student(student)
    signature = text_to_image(loaded.latent_channels, loaded.latent_size, loaded.size_px)
    graph = OneStepGraph(loaded)
    report(f"loaded {student} in {clock.lap('load'):.1f} s")
    cases = draw_cases(loaded, graph, signature, max(MEASURED_ROWS, max_batch))
    report(f"drew {len(cases.torch_pictures)} pictures in {clock.lap('reference'):.1f} s")
    with staging(repository) as staged:
        write_onnx(graph, signature, staged / GRAPH)
        size_mb = sum(file.stat().st_size for file in staged.iterdir()) / 1e6
        report(f"wrote one graph, {size_mb:.1f} MB, in {clock.lap('onnx'):.1f} s")
        parity = verify(open_session(staged / GRAPH, torch.get_num_threads()), cases, max_batch)
        report(f"{parity.table()}\nparity holds, measured in {clock.lap('parity'):.1f} s")
        _write_tokenizers(loaded, staged)
        published = publish(
            staged,
            repository,
            name,
            triton_config(name, signature, max_batch),
            _facts(loaded, signature, max_batch, parity),
        )
    report(f"published {published.folder} (digest {published.digest[:12]})")
    report(engine_advice(published.folder, signature, max_batch, nvidia_gpu_found()))
    clock.lap("publish")
    return Exported(published.folder, published.version, published.digest, parity, clock.seconds)


def find_published(student: Path, repository: Path, name: str, max_batch: int) -> Path | None:
    """The newest whole version of model `name` that holds this very student, or None."""
    if not (student / "unet").is_dir() or not (repository / name).is_dir():
        return None
    digest = student_sha256(student)
    for number in sorted(versions(repository / name), reverse=True):
        folder = repository / name / str(number)
        try:
            manifest = check_version(folder)
        except RepositoryError:
            continue
        same = manifest["source"].get("student_sha256") == digest
        if same and manifest["max_batch"] == max_batch:
            return folder
    return None


def check_max_batch(max_batch: int) -> None:
    """The largest batch a server may send."""
    if not 1 <= max_batch <= LARGEST_BATCH:
        raise ExportError(f"max_batch is {max_batch}; it must lie between 1 and {LARGEST_BATCH}")


def _write_tokenizers(student: Student, folder: Path) -> None:
    pipeline = student.pipeline
    both = (pipeline.tokenizer, pipeline.tokenizer_2)
    for tokenizer, file in zip(both, TOKENIZERS.values(), strict=True):
        write_tokenizer(tokenizer, folder / file)


def _facts(student: Student, signature: Signature, max_batch: int, parity: Parity) -> Manifest:
    """Everything of the manifest that does not depend on where the version comes to lie."""
    step = student.step
    return {
        **describe(signature, max_batch),
        "one_step": {"timestep": step.timestep, "prediction_type": step.prediction_type},
        "parity": parity.to_json(),
        "source": {
            "student": student.folder.resolve().name,
            "student_sha256": student_sha256(student.folder),
        },
        "versions": {**{library: installed(library) for library in LIBRARIES}, "opset": OPSET},
    }


def student_sha256(folder: Path) -> str:
    """sha256 over the `sha256sum` lines of every file of the directory, by relative path."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of(path)}
        for path in folder.rglob("*")
        if path.is_file()
    }
    return digest_of(files)


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> float:
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now
        return self.seconds[name]
