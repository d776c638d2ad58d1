"""What TensorRT says while it works: its errors are kept, its warnings and its progress told.

Both classes become TensorRT's own kind by `attach`: TensorRT calls them, so they must derive from
its classes, which exist only where it is installed.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from export.engine.api import Trt
from export.errors import EngineError

Report = Callable[[str], None]
Kind = TypeVar("Kind")

ERRORS = ("INTERNAL_ERROR", "ERROR")
SHARE = 10  # a phase is told each time another 10 % of it are done


class Log:
    """TensorRT's logger: `errors` in order, each different warning told once, the rest dropped."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.errors: list[str] = []
        self._report = report
        self._told: set[str] = set()

    def log(self, severity: Any, msg: str) -> None:
        """Called by TensorRT, from any of its threads."""
        if severity.name in ERRORS:
            self.errors.append(msg)
        elif severity.name == "WARNING" and msg not in self._told:
            self._told.add(msg)
            self._report(f"TensorRT warns: {msg}")

    def said(self) -> str:
        """The errors so far as one line, or that there were none."""
        return "; ".join(self.errors) or "TensorRT gave no reason"


class Progress:
    """TensorRT's progress monitor: the outermost phases by tenths; an interrupt stops the build."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.interrupted = False
        self._report = report
        self._steps: dict[str, int] = {}  # of each outermost phase
        self._percent: dict[str, int] = {}  # told last

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase without a parent is followed."""
        if not parent_phase:
            self._steps[phase_name] = num_steps
            self._percent[phase_name] = 0

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Whether to go on: False once the user has interrupted."""
        try:
            self._tell(phase_name, step)
        except KeyboardInterrupt:  # may not fly through TensorRT; the builder raises it again
            self.interrupted = True
        return not self.interrupted

    def phase_finish(self, phase_name: str) -> None:
        """A phase that TensorRT leaves early ends here too."""
        if self._steps.pop(phase_name, 0):
            self._report(f"TensorRT: {phase_name}, done")

    def _tell(self, phase_name: str, step: int) -> None:
        steps = self._steps.get(phase_name, 0)
        if steps < 2 or step + 1 >= steps:  # the last step is told by the phase's end
            return
        percent = (step + 1) * 100 // steps // SHARE * SHARE
        if percent > self._percent[phase_name]:
            self._percent[phase_name] = percent
            self._report(f"TensorRT: {phase_name}, {percent} %")


def attach(kind: type[Kind], base: Any, report: Report) -> Kind:
    """`kind(report)` as an object that is also a `base` of TensorRT's."""
    derived = type(kind.__name__, (kind, base), {})
    made: Kind = derived(report)
    return made


def start(trt: Trt, kind: Any, log: Log) -> Any:
    """`kind(log)`, a Builder or Runtime; without a working driver TensorRT makes none."""
    try:
        return kind(log)
    except TypeError as error:  # "factory function returned nullptr"
        raise EngineError(
            f"TensorRT {trt.__version__} does not start on this machine's GPU: {log.said()}"
        ) from error
