"""The NVIDIA GPU of this machine, as its driver's own tool tells it."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from export.errors import EngineError

TOOL = "nvidia-smi"
FIELDS = "name,driver_version,compute_cap,memory.total"
TIMEOUT_S = 30


@dataclass(frozen=True)
class Gpu:
    """Name, driver version, compute capability as in `9.0`, memory in bytes."""

    name: str
    driver: str
    capability: str
    memory_bytes: int


def nvidia_gpu_found() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return shutil.which(TOOL) is not None


def find_gpu() -> Gpu:
    """The GPU that CUDA uses first; `EngineError` if there is none."""
    if not nvidia_gpu_found():
        raise EngineError(
            f"no NVIDIA GPU was found ({TOOL} is not there); an engine is built on a machine with "
            f"a GPU of the kind that will serve"
        )
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = [TOOL, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", f"--id={first}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{TOOL} cannot tell the GPU: {error}") from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()
        raise EngineError(f"{TOOL} finds no GPU {first}: {said or f'exit {done.returncode}'}")
    return parse_gpu(done.stdout)


def parse_gpu(line: str) -> Gpu:
    """One line of comma-separated `FIELDS`, memory in MiB."""
    parts = [part.strip() for part in line.strip().split(",")]
    if len(parts) != 4 or not parts[3].isdecimal():
        raise EngineError(f"{TOOL} answers {line.strip()!r}; expected are {FIELDS}")
    name, driver, capability, memory_mib = parts
    return Gpu(name, driver, capability, int(memory_mib) << 20)
