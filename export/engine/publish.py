"""An engine into a published version: built or refitted here, measured, and only then added.

A wrong engine is nothing rare: TensorRT has computed batches above 1 wrong while its own tool
reported success. So every batch size and row is drawn and compared with ONNX Runtime on the
version's graph first, and an engine beyond the limits is never added.
"""

from dataclasses import replace
from pathlib import Path

from export.engine.api import Trt, load_tensorrt
from export.engine.build import build_for_version
from export.engine.facts import EngineFacts, EngineOptions, Here, check_engine, onnx_digest
from export.engine.gpu import Gpu, find_gpu
from export.engine.log import Report
from export.engine.refit import refit_engine
from export.engine.runtime import Stream, open_engine
from export.errors import EngineError
from export.gate.published import Request, verify_repository
from export.gate.version import Version, open_version
from export.repository.addition import add_engine
from export.repository.workplace import workplace


def publish_engine(
    repository: Path,
    model: str | None = None,
    version: int | None = None,
    options: EngineOptions | None = None,
    *,
    opt_batch: int | None = None,
    refit_from: int | None = None,
    request: Request | None = None,
    report: Report = print,
    trt: Trt | None = None,
    gpu: Gpu | None = None,
    stream: Stream | None = None,
) -> EngineFacts:
    """Add this GPU's engine to a version: the newest of the only model if none is named.

    With `refit_from`, that version's engine takes this version's weights instead of being built.
    `request` tells the gate how much to draw; `ParityError` if the engine draws other pictures.
    """
    options = options or EngineOptions()
    if options.strip_weights:
        raise EngineError(
            "strip_weights gives an engine without weights, which no server can serve; leave it "
            "out when an engine is added to a repository"
        )
    trt = load_tensorrt() if trt is None else trt
    gpu = gpu or find_gpu()
    found = open_version(repository, model, version)
    with workplace(repository, f"no engine was added to {found.label}") as scratch:
        if refit_from is None:
            plan, facts = build_for_version(
                found.folder, scratch, options, opt_batch=opt_batch, report=report, trt=trt, gpu=gpu
            )
        else:
            source = open_version(repository, found.folder.parent.name, refit_from)
            plan, facts = _refitted(source, found, scratch, report, trt, gpu)
        host_code = facts.options.version_compatible
        infer = open_engine(plan, host_code=host_code, trt=trt, stream=stream)
        parity = _measured(found, replace(request or Request(), infer=infer), report)
        add_engine(found.folder, plan, facts.capability, {**facts.to_json(), "gate": parity})
    report(f"added {facts.file} to {found.label}")
    return facts


def _measured(version: Version, request: Request, report: Report) -> dict[str, object]:
    """What the gate says of the engine; beyond the limits it raises."""
    model = version.folder.parent
    request = replace(request, against="onnx")
    parity = verify_repository(
        model.parent, model.name, int(version.folder.name), request, report=report
    )
    return parity.to_json()


def _refitted(
    source: Version, target: Version, scratch: Path, report: Report, trt: Trt, gpu: Gpu
) -> tuple[Path, EngineFacts]:
    """The source's engine for this GPU with the target's weights; both must be of one shape."""
    if (source.signature, source.max_batch) != (target.signature, target.max_batch):
        raise EngineError(
            f"{source.label} and {target.label} differ in sizes or max_batch, so the engine of "
            f"one is not the other's; build it instead"
        )
    engines = source.manifest.get("engines", {})
    if gpu.capability not in engines:
        there = ", ".join(sorted(engines)) or "none"
        raise EngineError(
            f"{source.label} has no engine for compute capability {gpu.capability} to refit; its "
            f"engines are for: {there}"
        )
    facts = EngineFacts.from_json(
        {key: value for key, value in engines[gpu.capability].items() if key != "gate"}
    )
    here = Here(trt.__version__, gpu.name, gpu.capability, onnx_digest(source.graph))
    check_engine(facts, here)
    plan = scratch / facts.file
    facts = refit_engine(source.folder / facts.file, facts, target.graph, plan, report, trt)
    return plan, facts
