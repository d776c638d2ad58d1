"""A one-step model -> model repository: load, one ONNX graph, the gate, publish.

A graph that does not pass the gate is never published, and a stage that fails leaves the
repository as it was.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

import torch

from export.engine.facts import engine_advice, nvidia_gpu_found
from export.engine.operators import unsupported_operators
from export.gate.cases import Cases
from export.gate.limits import arithmetic_of, limits_for
from export.gate.parity import Parity
from export.gate.quantize import quantize_int8
from export.gate.session import open_session
from export.gate.verify import draw_every_size, verify
from export.gate.widen import widen
from export.graph.to_onnx import write_onnx
from export.model.foreign import Source
from export.options import Options
from export.origin import origin_of
from export.repository.manifest import GRAPH, Manifest, describe
from export.repository.publish import Published, check_name, publish, staging
from export.repository.serving import read_config
from export.repository.triton_config import triton_config
from export.service_times import measure_service_ms
from export.signature import Signature
from export.tasks.opening import open_task
from export.tasks.task import Task

MEASURED_ROWS = 8
LIBRARIES = ("torch", "diffusers", "transformers", "onnx", "onnxruntime")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """A published version: where it lies, what it is, how it was checked, how long it took.

    `parity` is None where the gate was left out.
    """

    folder: Path
    version: int
    digest: str
    parity: Parity | None
    seconds: dict[str, float]


def export_student(
    student: Path | Source,
    repository: Path,
    name: str,
    options: Options | None = None,
    *,
    report: Report = print,
) -> Exported:
    """Publish the model as the next version of `name`; `ExportError` says what is wrong.

    `student` is a directory whose scheduler config says the recipe, or any other `Source`.
    """
    source = student if isinstance(student, Source) else Source(student)
    options = options or Options()
    check_name(name)
    options.check()
    clock = _Clock()
    task = open_task(source, options.precision, options.vae, report)
    for note in task.notes:
        report(f"warning: {note}")
    signature = task.signature(options.sizes)
    report(f"loaded {source.model} in {clock.lap('load'):.1f} s")
    cases = _draw(task, signature, options, report)
    clock.lap("reference")
    with staging(repository) as staged:
        write_onnx(task.graph, signature, staged / GRAPH, options.opset)
        size_mb = sum(file.stat().st_size for file in staged.iterdir()) / 1e6
        report(f"wrote one graph, {size_mb:.1f} MB, in {clock.lap('onnx'):.1f} s")
        facts = _facts(task, signature, source, options)
        parity = None
        if cases:
            parity, measured = _measure(staged / GRAPH, cases, options, report)
            facts |= measured
            report(f"the gate: passed in {clock.lap('gate'):.1f} s")
        _warn_of_operators(staged / GRAPH, report)
        task.write_files(staged)
        published = _publish(staged, repository, name, signature, options, facts)
    _report_published(published, signature, options, report)
    clock.lap("publish")
    return Exported(published.folder, published.version, published.digest, parity, clock.seconds)


def _draw(task: Task, signature: Signature, options: Options, report: Report) -> tuple[Cases, ...]:
    """What torch and stock diffusers draw; nothing where the gate is left out."""
    if not options.gate:
        report("warning: the gate is left out; run `distill verify` where the model will be served")
        return ()
    cases = draw_every_size(task, signature, max(MEASURED_ROWS, options.max_batch))
    for note in task.looks():
        report(f"warning: {note}")
    return cases


def _measure(
    file: Path, cases: tuple[Cases, ...], options: Options, report: Report
) -> tuple[Parity, Manifest]:
    """Quantize if asked, pass the gate, take the times: what the manifest says of all three."""
    facts: Manifest = {}
    threads = torch.get_num_threads()
    if options.quantize:
        quantized = quantize_int8(file, cases[0].feeds, threads)
        report(quantized.sentence())
        facts["quantized"] = quantized.to_json()
    arithmetic = arithmetic_of(file)
    runnable = file
    if "bfloat16" in (arithmetic.denoiser, arithmetic.decoder):
        runnable = file.with_name("widened.onnx")
        widen(file, runnable)
        report("warning: ONNX Runtime has no bfloat16 on a CPU; the gate measures it as float32")
    infer = open_session(runnable, threads)
    try:
        parity = verify(infer, cases, options.max_batch, options.limits or limits_for(arithmetic))
        report(parity.table())
        service_ms = measure_service_ms(infer, cases[0].feeds, options.max_batch)
    finally:
        if runnable != file:
            runnable.unlink()
            runnable.with_name(f"{runnable.name}.data").unlink(missing_ok=True)
    times = {str(size): round(taken_ms, 3) for size, taken_ms in service_ms.items()}
    return parity, {**facts, "gate": parity.to_json(), "service_ms": times}


def _publish(
    staged: Path,
    repository: Path,
    name: str,
    signature: Signature,
    options: Options,
    facts: Manifest,
) -> Published:
    times: Mapping[str, float] = facts.get("service_ms", {})
    config = triton_config(
        name,
        signature,
        options.max_batch,
        options.runtime,
        service_ms={int(size): taken_ms for size, taken_ms in times.items()} or None,
    )
    return publish(staged, repository, name, config, facts, options.keep)


def _report_published(
    published: Published, signature: Signature, options: Options, report: Report
) -> None:
    report(f"published {published.folder} (digest {published.digest[:12]})")
    if published.served != published.version:
        report(f"version {published.served} is pinned and stays served; `distill rollback` unpins")
    backend = read_config(published.folder.parent).backend
    if backend != options.runtime:
        report(f"the model stays served by {backend}; `distill configure` changes that")
    for version in published.removed:
        report(f"removed version {version}, older than the {options.keep} that are kept")
    report(engine_advice(published.folder, signature, options.max_batch, nvidia_gpu_found()))


def _warn_of_operators(file: Path, report: Report) -> None:
    for unsupported in unsupported_operators(file):
        report(f"warning: TensorRT does not list {unsupported}")


def _facts(task: Task, signature: Signature, source: Source, options: Options) -> Manifest:
    """Everything of the manifest that depends neither on a measurement nor on the place."""
    return {
        **describe(signature, options.max_batch),
        **task.facts(),
        "gate": {"level": "not measured"},
        "source": origin_of(source, options),
        "versions": {library: installed(library) for library in LIBRARIES},
    }


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> float:
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now
        return self.seconds[name]
