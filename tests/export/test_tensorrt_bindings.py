"""Every TensorRT name that the code uses, held against the real bindings of TensorRT 10 and 11."""

import ast
import inspect
from pathlib import Path

import pytest
import tensorrt_fake
import tensorrt_fake_engine
import tensorrt_surface
from tensorrt_surface import VERSIONS, read_surface, snapshot, unpacked, with_bindings

from export.engine import api as tensorrt_api
from export.engine import log as tensorrt_log
from export.engine import runtime as tensorrt_runtime
from export.engine.facts import HARDWARE

CODE = sorted(Path(tensorrt_api.__file__).parent.glob("*.py"))
STATED = {
    name: kind
    for name, kind in vars(tensorrt_api).items()
    if inspect.isclass(kind) and getattr(kind, "_is_protocol", False) and name != "Protocol"
}
FAKES = {
    "Builder": tensorrt_fake.Builder,
    "IBuilderConfig": tensorrt_fake.Config,
    "ICudaEngine": tensorrt_fake_engine.Engine,
    "IExecutionContext": tensorrt_fake_engine.Context,
    "IHostMemory": tensorrt_fake_engine.Memory,
    "INetworkDefinition": tensorrt_fake.Network,
    "IOptimizationProfile": tensorrt_fake.OptimizationProfile,
    "ISerializationConfig": tensorrt_fake_engine.SerializationConfig,
    "ITimingCache": tensorrt_fake.TimingCache,
    "OnnxParser": tensorrt_fake.OnnxParser,
    "OnnxParserRefitter": tensorrt_fake_engine.OnnxParserRefitter,
    "ParserError": tensorrt_fake_engine.Error,
    "Refitter": tensorrt_fake_engine.Refitter,
    "Runtime": tensorrt_fake_engine.Runtime,
}

live = pytest.mark.parametrize(
    "version",
    [
        pytest.param(
            version,
            marks=pytest.mark.skipif(
                not unpacked(version), reason=f"no bindings in .venv/tensorrt/{version}"
            ),
        )
        for version in VERSIONS
    ],
)


def parameters(method) -> list[str]:
    return [name for name in inspect.signature(method).parameters if name != "self"]


def methods(kind) -> dict[str, list[str]]:
    public = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    return {name: parameters(value) for name, value in public.items() if inspect.isfunction(value)}


def chain(node: ast.AST) -> list[str]:
    """`trt.A.B` -> [A, B]; [] for anything that does not begin with `trt`."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return names if isinstance(node, ast.Name) and node.id == "trt" else []


class Uses(ast.NodeVisitor):
    """What a file reads from `trt`: names, members that may be lacking, and the calls it makes."""

    def __init__(self) -> None:
        self.names: set[tuple[str, ...]] = set()
        self.optional: set[tuple[str, ...]] = set()
        self.calls: set[tuple[str, int]] = set()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if names := chain(node):
            self.names.add(tuple(names))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        for argument in node.args:
            if called in ("member", "hasattr", "getattr", "start") and chain(argument):
                names = chain(argument)
                if called == "start":
                    self.calls.add((names[0], 1))
                elif texts:
                    self.optional.add((*names, texts[0]))
        if len(chain(node.func)) == 1:
            self.calls.add((chain(node.func)[0], len(node.args)))
        self.generic_visit(node)


@pytest.fixture(scope="module")
def uses() -> Uses:
    found = Uses()
    for file in CODE:
        found.visit(ast.parse(file.read_text("utf-8")))
    for level, _ in HARDWARE.values():
        found.optional.add(("HardwareCompatibilityLevel", level))
    return found


def has(surface: dict, names: tuple[str, ...]) -> bool:
    """Whether `trt.A` or the enum's member `trt.A.B` is there."""
    if names == ("__version__",):
        return bool(surface["version"])
    if len(names) == 2:
        return names[1] in surface["enums"].get(names[0], ())
    return names[0] in surface["names"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_that_the_code_reads_is_there(version: str, uses: Uses) -> None:
    surface = snapshot(version)
    wanted = {names for names in uses.names if names not in uses.optional}
    assert len(wanted) > 12
    assert {names for names in wanted if not has(surface, names)} == set()


def test_every_name_that_may_be_lacking_is_there_in_the_newest_version(uses: Uses) -> None:
    assert ("BuilderFlag", "STRIP_PLAN") in uses.optional
    assert len(uses.optional) >= 8
    assert {names for names in uses.optional if not has(snapshot("11.4"), names)} == set()
    older = {names for names in uses.optional if not has(snapshot("10.8"), names)}
    assert older == {
        ("HardwareCompatibilityLevel", "SAME_COMPUTE_CAPABILITY"),
        ("SerializationFlag", "INCLUDE_REFIT"),
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_made_from_as_many_arguments_as_it_takes(version: str, uses: Uses) -> None:
    classes = snapshot(version)["classes"]
    assert {name for name, _ in uses.calls} >= {"Builder", "Runtime", "OnnxParser", "Refitter"}
    for name, count in uses.calls:
        assert count in [len(made) for made in classes[name]["made_from"]], name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", STATED)
def test_a_stated_class_has_the_real_one_s_members(name: str, version: str) -> None:
    real = snapshot(version)["classes"][name]
    for method, names in methods(STATED[name]).items():
        overloads = [made[: len(names)] for made in real["methods"][method]]
        assert names in overloads, f"{name}.{method}"
    for attribute in inspect.get_annotations(STATED[name]):
        assert attribute in real["properties"], f"{name}.{attribute}"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_code_sets_can_be_set(version: str) -> None:
    text = "\n".join(file.read_text("utf-8") for file in CODE)
    config = snapshot(version)["classes"]["IBuilderConfig"]["properties"]
    for attribute in inspect.get_annotations(STATED["IBuilderConfig"]):
        assert f"config.{attribute} = " in text
        assert config[attribute], attribute
    assert snapshot(version)["classes"]["Runtime"]["properties"]["engine_host_code_allowed"]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_tensorrt_calls_has_the_names_and_parameters_it_calls(version: str) -> None:
    classes = snapshot(version)["classes"]
    for ours, theirs in (
        (tensorrt_log.Log, "ILogger"),
        (tensorrt_log.Progress, "IProgressMonitor"),
    ):
        for method, overloads in classes[theirs]["methods"].items():
            assert parameters(getattr(ours, method)) == overloads[0], method


@pytest.mark.parametrize("version", VERSIONS)
def test_types_and_severities_bear_tensorrt_s_names(version: str) -> None:
    enums = snapshot(version)["enums"]
    assert set(tensorrt_runtime.TYPES) <= set(enums["DataType"])
    assert {*tensorrt_log.ERRORS, "WARNING"} <= set(enums["ILogger.Severity"])


@pytest.mark.parametrize("name", FAKES)
def test_the_stand_in_offers_what_is_stated_and_no_more(name: str) -> None:
    stated, fake = methods(STATED[name]), methods(FAKES[name])
    if name != "IHostMemory":
        assert fake == stated
    made = FAKES[name]("") if name == "IOptimizationProfile" else FAKES[name]
    for attribute in inspect.get_annotations(STATED[name]):
        assert hasattr(made, attribute), attribute


def test_every_stated_class_has_a_stand_in_and_a_snapshot() -> None:
    assert STATED.keys() - FAKES.keys() == {"ITensor"}  # `Named`, of one attribute
    assert STATED.keys() <= set(tensorrt_surface.CLASSES)


@live
def test_the_snapshot_is_what_the_real_bindings_say(version: str, tmp_path: Path) -> None:
    assert read_surface(version, tmp_path) == snapshot(version)


SCRIPT = """
import ctypes
from pathlib import Path
import tensorrt_bindings as trt
from export.errors import EngineError
from export.engine.api import member
from export.engine.gpu import Gpu
from export.engine.log import Log, Progress, attach
from export.engine.build import build_engine
from export.engine.facts import EngineOptions

log = attach(Log, trt.ILogger, print)
log.log(trt.ILogger.Severity.ERROR, "broken")
assert isinstance(log, trt.ILogger) and log.errors == ["broken"]
progress = attach(Progress, trt.IProgressMonitor, print)
progress.phase_start("Build", None, 10)
assert isinstance(progress, trt.IProgressMonitor) and progress.step_complete("Build", 4)
assert member(trt, trt.BuilderFlag, "REFIT", "refit") == trt.BuilderFlag.REFIT
is_buffer = ctypes.pythonapi.PyObject_CheckBuffer  # looks at the type alone
is_buffer.argtypes = [ctypes.py_object]
assert is_buffer(trt.IHostMemory.__new__(trt.IHostMemory))
assert not is_buffer(trt.ITensor.__new__(trt.ITensor))
gpu = Gpu("none", "0", "9.0", 1)
try:
    build_engine(Path(__file__), Path("x.plan"), [], EngineOptions(), print, trt, gpu)
except EngineError as error:
    print(error)
"""


@live
def test_the_real_bindings_take_our_logger_and_monitor_and_our_refusal_is_reached(
    version: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    said = with_bindings(version, tmp_path, script).splitlines()
    number = snapshot(version)["version"]
    assert said == [
        "TensorRT: Build, 50 %",
        f"building x.plan with TensorRT {number} for none",
        f"TensorRT {number} does not start on this machine's GPU: TensorRT gave no reason",
    ]
