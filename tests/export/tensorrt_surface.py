"""What TensorRT's real Python bindings offer, read from them and kept beside this file.

The bindings lie unpacked in .venv/tensorrt/<version> (`make bindings`). They are loaded in a
process of their own, with libraries of our own making in place of TensorRT's (tensorrt_elf.py).
Their docstrings hold every signature.

    python tests/export/tensorrt_surface.py --write     renew tests/export/bindings/*.json
"""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tensorrt_elf import write_library

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
BINDINGS = ROOT / ".venv" / "tensorrt"
SNAPSHOTS = HERE.parent / "bindings"
VERSIONS = ("10.8", "10.16", "11.4")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRIES = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
CLASSES = (
    "Builder",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ISerializationConfig",
    "ITensor",
    "ITimingCache",
    "OnnxParser",
    "OnnxParserRefitter",
    "ParserError",
    "Refitter",
    "Runtime",
)
ENUMS = (
    "BuilderFlag",
    "DataType",
    "ErrorCode",
    "HardwareCompatibilityLevel",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "SerializationFlag",
    "TensorIOMode",
)
SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((.*)\) -> ", re.MULTILINE)


def unpacked(version: str) -> bool:
    """Whether `make bindings` has put this version there."""
    return (BINDINGS / version / "tensorrt_bindings" / "tensorrt.so").is_file()


def snapshot(version: str) -> dict:
    """What lies in the repository."""
    return json.loads((SNAPSHOTS / f"{version}.json").read_text("utf-8"))


def with_bindings(version: str, libraries: Path, script: Path, *options: str) -> str:
    """Run a Python script in which `import tensorrt_bindings` gives the real ones; its output."""
    for library in LIBRARIES:
        write_library(libraries / f"lib{library}.so.{version.split('.')[0]}", ENTRIES)
    places = [BINDINGS / version, ROOT, HERE.parent]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": os.pathsep.join(map(str, places)),
    }
    done = subprocess.run(
        [sys.executable, script, *options], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_surface(version: str, libraries: Path) -> dict:
    """From the bindings themselves."""
    return json.loads(with_bindings(version, libraries, HERE, "--read"))


def _surface(trt) -> dict:
    """The module's names, its enums' members, and the members of the classes of interest."""
    names = sorted(name for name in dir(trt) if not name.startswith("_"))
    enums = {name: _members(getattr(trt, name)) for name in ENUMS}
    enums["ILogger.Severity"] = _members(trt.ILogger.Severity)
    return {
        "version": trt.__version__,
        "names": names,
        "enums": enums,
        "classes": {name: _class(getattr(trt, name)) for name in CLASSES},
    }


def _members(kind) -> list[str]:
    return list(getattr(kind, "__members__", ()))


def _class(kind) -> dict:
    """Methods with the parameter names of each overload; properties and whether they can be set."""
    public = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    properties = {name: value for name, value in public.items() if isinstance(value, property)}
    methods = {
        name: _overloads(value.__doc__)
        for name, value in public.items()
        if callable(value) and name not in properties and not _members(value)
    }
    return {
        "made_from": _overloads(kind.__init__.__doc__),
        "methods": methods,
        "properties": {name: value.fset is not None for name, value in properties.items()},
    }


def _overloads(doc: str | None) -> list[list[str]]:
    return [_parameters(found) for found in SIGNATURE.findall(doc or "")]


def _parameters(text: str) -> list[str]:
    """`self: A, x: b[c, d] = <e: 0>` -> [`x`]; the brackets are emptied first."""
    flat = text
    while True:
        simpler = re.sub(r"\[[^\[\]]*\]|\([^()]*\)|<[^<>]*>", "", flat)
        if simpler == flat:
            break
        flat = simpler
    names = [part.split(":")[0].split("=")[0].strip() for part in flat.split(",") if part.strip()]
    return [name for name in names if name != "self"]


def _write() -> None:
    for version in VERSIONS:
        libraries = BINDINGS / "libraries"
        libraries.mkdir(exist_ok=True)
        text = json.dumps(read_surface(version, libraries), indent=1)
        text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
        (SNAPSHOTS / f"{version}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    if "--read" in sys.argv:
        print(json.dumps(_surface(importlib.import_module("tensorrt_bindings"))))
    elif "--write" in sys.argv:
        _write()
