"""A stand-in for the TensorRT module that really builds, refits and runs: on ONNX Runtime.

Its enums are those of the real bindings of the same version (bindings/*.json). A plan is a line of
JSON and the graph itself, so what an engine draws can be compared with what its graph draws. What
can go wrong is asked for by name: `FakeTensorrt("11.4", fails="memory")`.
"""

import json
from enum import IntEnum

import onnx
from google.protobuf.message import DecodeError
from tensorrt_fake_engine import Error, Memory, OnnxParserRefitter, Refitter, Runtime
from tensorrt_surface import snapshot


class Named:
    def __init__(self, name: str) -> None:
        self.name = name


class Network:
    model = None

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, index: int) -> Named:
        return Named(self.model.graph.input[index].name)


class OptimizationProfile:
    def __init__(self, fails: str) -> None:
        self._fails = fails
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min, opt, max) -> None:
        if self._fails == "shape":
            raise ValueError("inconsistent dimensions")
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
        self.shapes[input] = [tuple(min), tuple(opt), tuple(max)]


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> Memory:
        return Memory(self.content)


class Config:
    builder_optimization_level = 3
    hardware_compatibility_level = None
    progress_monitor = None

    def __init__(self, trt: "FakeTensorrt") -> None:
        self._trt = trt
        self.flags = ["TF32"]  # as the real one begins
        self.pools: dict[str, int] = {}
        self.profiles: list[OptimizationProfile] = []
        self.cache: TimingCache | None = None

    def set_flag(self, flag) -> None:
        self.flags.append(flag.name)

    def clear_flag(self, flag) -> None:
        self.flags.remove(flag.name)

    def set_memory_pool_limit(self, pool, pool_size: int) -> None:
        self.pools[pool.name] = pool_size

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile)
        return -1 if self._trt.fails == "profile" else len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        fits = cache.content in (b"", self._trt.measured)
        self.cache = cache if fits else self.cache
        return fits

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


class Builder:
    def __init__(self, trt: "FakeTensorrt", log) -> None:
        if trt.fails == "driver":
            log.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._trt, self._log = trt, log

    def create_network(self, flags: int) -> Network:
        self._trt.network_flags = flags
        return Network()

    def create_builder_config(self) -> Config:
        self._trt.config = Config(self._trt)
        return self._trt.config

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile(self._trt.fails)

    def build_serialized_network(self, network: Network, config: Config) -> Memory | None:
        severity, trt = self._trt.ILogger.Severity, self._trt
        self._log.log(severity.WARNING, "a tensor is not used")
        self._log.log(severity.WARNING, "a tensor is not used")
        self._log.log(severity.INFO, "all is well")
        if not self._steps(config.progress_monitor):
            return None
        if trt.fails == "nothing":
            self._log.log(severity.INTERNAL_ERROR, "no implementation for node mix")
            return None
        if trt.fails == "memory":
            self._log.log(severity.ERROR, "Requested size was 9 bytes: CUDA out of memory.")
            return None
        config.cache = TimingCache(trt.measured)
        facts = {
            "profiles": [profile.shapes for profile in config.profiles],
            "refit": any(flag.startswith("REFIT") for flag in config.flags),
            "stripped": "STRIP_PLAN" in config.flags,
            "compatible": "VERSION_COMPATIBLE" in config.flags,
        }
        return trt.plan(network.model, facts)

    def _steps(self, monitor) -> bool:
        """Whether the monitor lets it go on to the end."""
        monitor.phase_start("Build", None, 40)
        for step in range(40):
            monitor.phase_start("Layer", "Build", 2)
            if not (monitor.step_complete("Layer", 0) and monitor.step_complete("Build", step)):
                return False
            monitor.phase_finish("Layer")
        monitor.phase_finish("Build")
        return True


class OnnxParser:
    def __init__(self, trt: "FakeTensorrt", network: Network, log) -> None:
        self._trt, self._network, self._errors = trt, network, []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Error:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        codes = self._trt.ErrorCode
        if self._trt.fails == "parser":
            first = ("no importer for Warp", 3, "warp_1", "Warp")
            second = ("static input expected", 12, "loop_7", "Loop")
            self._errors = [
                Error(codes.UNSUPPORTED_NODE, *first),
                Error(codes.UNSUPPORTED_NODE_DYNAMIC, *second),
            ]
            return False
        try:
            self._network.model = onnx.load(model)
        except DecodeError as error:
            self._errors = [Error(codes.MODEL_DESERIALIZE_FAILED, f"no ONNX model: {error}")]
            return False
        return True


class FakeTensorrt:
    """The module: what the code reads from `trt`."""

    def __init__(self, version: str = "11.4", fails: str = "") -> None:
        surface = snapshot(version)
        self.__version__ = surface["version"]
        self.fails = fails
        self.measured = b"measured on this GPU"
        enums = dict(surface["enums"])
        severity = IntEnum("Severity", enums.pop("ILogger.Severity"), start=0)
        self.ILogger = type("ILogger", (), {"Severity": severity})
        self.IProgressMonitor = type("IProgressMonitor", (), {})
        for name, members in enums.items():
            setattr(self, name, IntEnum(name, members, start=0))

    def plan(self, model, facts: dict) -> Memory:
        graph = model.SerializeToString()
        head = {**facts, "tensorrt": self.__version__, "length": len(graph)}
        return Memory(json.dumps(head).encode() + b"\n" + graph)

    def Builder(self, logger) -> Builder:  # noqa: N802
        return Builder(self, logger)

    def OnnxParser(self, network, logger) -> OnnxParser:  # noqa: N802
        return OnnxParser(self, network, logger)

    def Runtime(self, logger) -> Runtime:  # noqa: N802
        return Runtime(self, logger)

    def Refitter(self, engine, logger) -> Refitter:  # noqa: N802
        return Refitter(self, engine, logger)

    def OnnxParserRefitter(self, refitter, logger) -> OnnxParserRefitter:  # noqa: N802
        return OnnxParserRefitter(self, refitter, logger)
