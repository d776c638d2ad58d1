"""Another student of the same shape in the same engine: its weights are put in, in seconds."""

import time
from dataclasses import replace
from pathlib import Path

from export.engine.api import (
    ICudaEngine,
    ISerializationConfig,
    OnnxParserRefitter,
    Refitter,
    Trt,
    load_tensorrt,
    member,
    parser_errors,
)
from export.engine.facts import EngineFacts, onnx_digest
from export.engine.log import Log, Report, attach
from export.engine.plan import bytes_of, open_plan, write_whole
from export.errors import EngineError

NAMED = 5  # weights that an error names before it counts the rest


def refit_engine(
    plan: Path,
    facts: EngineFacts,
    onnx: Path,
    target: Path,
    report: Report = print,
    trt: Trt | None = None,
) -> EngineFacts:
    """Write `plan` with the weights of `onnx` to `target`; the graphs may differ in weights only.

    TensorRT does not promise that a refitted engine computes what a new one would: measure it.
    """
    trt = load_tensorrt() if trt is None else trt
    began = time.monotonic()
    model_sha256 = onnx_digest(onnx)
    _check_refittable(facts, model_sha256)
    log = attach(Log, trt.ILogger, report)
    engine = open_plan(trt, plan, log, facts.options.version_compatible)
    if not engine.refittable:
        raise EngineError(f"{plan} takes no other weights; build it again with refit")
    _put_in(trt, engine, onnx, log)
    content = engine.serialize_with_config(_whole(trt, engine))
    if content is None:
        raise EngineError(f"TensorRT {trt.__version__} does not serialize {plan}: {log.said()}")
    sha256 = write_whole(target, bytes_of(content))
    seconds = round(time.monotonic() - began, 1)
    report(f"refitted {target.name}, {content.nbytes / 1e6:.1f} MB, in {seconds} s")
    return replace(
        facts,
        file=target.name,
        sha256=sha256,
        bytes=content.nbytes,
        model_sha256=model_sha256,
        seconds=seconds,
        options=replace(facts.options, strip_weights=False),
    )


def _check_refittable(facts: EngineFacts, model_sha256: str) -> None:
    """An engine built without refit takes back its own weights at most."""
    if facts.options.refit:
        return
    if not facts.options.strip_weights:
        raise EngineError(f"{facts.file} was built without refit; build it again with refit")
    if facts.model_sha256 != model_sha256:
        raise EngineError(
            f"{facts.file} was stripped of the weights of the graph {facts.model_sha256[:12]} and "
            f"takes back only those, not {model_sha256[:12]}'s; build it again with refit"
        )


def _put_in(trt: Trt, engine: ICudaEngine, onnx: Path, log: Log) -> None:
    """Every weight that the engine can change, from the graph."""
    refitter: Refitter = trt.Refitter(engine, log)
    parser: OnnxParserRefitter = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(onnx)):
        raise EngineError(
            f"the weights of {onnx} do not fit: {parser_errors(parser) or log.said()}"
        )
    missing = refitter.get_missing_weights()
    if missing:
        rest = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise EngineError(f"{onnx} has no weights for {', '.join(missing[:NAMED])}{rest}")
    if not refitter.refit_cuda_engine():
        raise EngineError(f"TensorRT {trt.__version__} refuses the weights of {onnx}: {log.said()}")


def _whole(trt: Trt, engine: ICudaEngine) -> ISerializationConfig:
    """Serialize the weights too, and leave the engine refittable where TensorRT can."""
    config = engine.create_serialization_config()
    config.clear_flag(member(trt, trt.SerializationFlag, "EXCLUDE_WEIGHTS", "refit"))
    if hasattr(trt.SerializationFlag, "INCLUDE_REFIT"):
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return config
