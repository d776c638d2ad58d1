"""Plans on the disk: written whole or not at all, and opened once to see that they open."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from export.engine.api import ICudaEngine, IHostMemory, Runtime, Trt
from export.engine.log import Log, start
from export.errors import EngineError


def bytes_of(memory: IHostMemory) -> memoryview:
    """The bytes themselves, not a copy; they live as long as `memory`."""
    return memoryview(memory)  # type: ignore[arg-type]


def write_whole(file: Path, content: memoryview) -> str:
    """Write beside `file`, then rename; returns the sha256. `EngineError` leaves nothing behind."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise EngineError(
            f"{file} ({content.nbytes} bytes) cannot be written: {error.strerror}; nothing of it "
            f"was left behind"
        ) from error
    return hashlib.sha256(content).hexdigest()


def open_plan(trt: Trt, plan: Path, log: Log, host_code: bool = False) -> ICudaEngine:
    """Deserialize; `host_code` lets a version-compatible plan run the small runtime it brings."""
    runtime: Runtime = start(trt, trt.Runtime, log)
    if host_code:
        runtime.engine_host_code_allowed = True
    try:
        content = plan.read_bytes()
    except OSError as error:
        raise EngineError(f"the engine {plan} cannot be read: {error.strerror}") from error
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineError(
            f"TensorRT {trt.__version__} does not open {plan}; it may be cut short, or be another "
            f"version's or another GPU's: {log.said()}"
        )
    return engine
