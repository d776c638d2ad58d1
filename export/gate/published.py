"""`distill verify`: a published version, drawn again in every batch size and compared.

What is measured is ONNX Runtime on the version's graph, an engine (any `Infer`) or a running Triton
server. What it is compared with is torch and stock diffusers (`torch`: they need the student's
directory), or ONNX Runtime without graph optimisation, one picture at a time (`onnx`, `triton`).
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError
from export.gate.cases import Cases, Infer, plan
from export.gate.limits import arithmetic_of, limits_for
from export.gate.measure import draw, measure, pictures_drawn
from export.gate.parity import Limits, Parity
from export.gate.session import open_session
from export.gate.triton_infer import triton_infer
from export.gate.unoptimised import onnx_cases
from export.gate.verify import draw_every_size, rows_by_size
from export.gate.version import Version, open_version
from export.gate.worst import write_sheet
from export.model.foreign import Source
from export.repository.manifest import student_sha256
from export.tasks.opening import open_task

AGAINST = ("torch", "onnx", "triton")
ROWS = (64, 32, 16, 8)  # the first that the time allows; eight at least
REFERENCE_COST = 4  # a row's references, in pictures of the runtime
BUDGET_S = 60.0
SUBJECTS = {
    "torch": "the graph does not draw the student's pictures",
    "onnx": "the pictures are not those of the version's graph",
    "triton": "the server does not draw the pictures of the version's graph",
}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to compare with, how much, and what to write; None leaves the choice to the gate.

    `infer` is a runtime to measure in ONNX Runtime's place (an engine); `budget_s` bounds the time
    that the default number of rows takes; `threads` are ONNX Runtime's (0: its own choice).
    """

    against: str = "torch"
    student: Path | None = None
    url: str | None = None
    infer: Infer | None = None
    rows: int | None = None
    limits: Limits | None = None
    json_file: Path | None = None
    sheet: Path | None = None
    threads: int = 0
    budget_s: float = BUDGET_S


def verify_repository(
    repository: Path,
    model: str | None = None,
    version: int | None = None,
    request: Request | None = None,
    *,
    report: Report = print,
) -> Parity:
    """Measure a version (the newest of the only model if not named), write and report the figures.

    `ParityError` beyond the limits, after the files are written; other `ExportError`s say what
    cannot be measured.
    """
    request = request or Request()
    check_request(request)
    found, start = open_version(repository, model, version), time.monotonic()
    infer = _runtime(found, request)
    limits = request.limits or limits_for(arithmetic_of(found.graph), here=_is_here(request))
    rows = request.rows or affordable_rows(_picture_s(found, infer), found, request.budget_s)
    report(f"{found.label}, digest {found.manifest['digest'][:12]}, against {request.against}")
    cases = _cases(found, request, rows)
    parity = measure(infer, cases, found.max_batch, limits)
    report(f"{parity.table()}\nmeasured in {time.monotonic() - start:.1f} s")
    _write(found, request, parity, report)
    parity.check(f"{found.label}: {SUBJECTS[request.against]}")
    return parity


def check_request(request: Request) -> None:
    """Options that do not fit together are refused, not ignored."""
    against = request.against
    if against not in AGAINST:
        raise ExportError(f"--against is {against!r}; allowed are {', '.join(AGAINST)}")
    if (request.student is None) == (against == "torch"):
        has = "needs --student DIR" if against == "torch" else "takes no --student"
        raise ExportError(f"--against {against} {has}: torch alone draws with the student")
    if (request.url is None) == (against == "triton"):
        has = "needs --url HOST:PORT" if against == "triton" else "takes no --url"
        raise ExportError(f"--against {against} {has}: triton alone asks a server")
    if request.infer is not None and against == "triton":
        raise ExportError("--against triton measures the server; it takes no engine beside it")
    if request.rows is not None and request.rows < 2:
        raise ExportError(f"--rows is {request.rows}; at least 2 are needed to tell rows apart")


def affordable_rows(picture_s: float, version: Version, budget_s: float) -> int:
    """As many rows as the time allows, between 8 and 64; `picture_s` is one picture's time."""
    for rows in ROWS:
        counts = rows_by_size(version.signature, rows).values()
        drawn = sum(pictures_drawn(n, version.max_batch) + REFERENCE_COST * n for n in counts)
        if drawn * picture_s <= budget_s:
            return rows
    return ROWS[-1]


def _is_here(request: Request) -> bool:
    """Whether ONNX Runtime's CPU provider in this process is what is measured."""
    return request.infer is None and request.against != "triton"


def _runtime(version: Version, request: Request) -> Infer:
    """What is to be measured."""
    if request.url is not None:
        return triton_infer(request.url, version.manifest["model"], version.manifest["version"])
    return request.infer or open_session(version.graph, request.threads)


def _picture_s(version: Version, infer: Infer) -> float:
    """Seconds of one picture of the default size, once the runtime is warm."""
    cases = plan(version.signature, version.subjects(), 1)
    draw(infer, cases, [0])
    start = time.monotonic()
    draw(infer, cases, [0])
    return time.monotonic() - start


def _cases(version: Version, request: Request, rows: int) -> tuple[Cases, ...]:
    """The cases of every size with what the references draw, scanned."""
    if request.student is None:
        return onnx_cases(version, rows, request.threads)
    expected = version.manifest.get("source", {}).get("student_sha256")
    found = student_sha256(request.student)
    if expected is not None and found != expected:
        raise ExportError(
            f"--student {request.student} has sha256 {found[:12]}…, but {version.label} was made "
            f"from {expected[:12]}…"
        )
    task = open_task(Source(request.student))
    return draw_every_size(task, version.signature, rows, version.subjects())


def _write(version: Version, request: Request, parity: Parity, report: Report) -> None:
    """The JSON file and the contact sheet, where they are asked for."""
    if request.json_file is not None:
        place = {key: version.manifest[key] for key in ("model", "version", "digest")}
        facts = {**place, "compared_with": request.against, **parity.to_json()}
        text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        try:
            request.json_file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ExportError(
                f"--json {request.json_file} cannot be written: {error.strerror}"
            ) from error
        report(f"figures: {request.json_file}")
    if request.sheet is not None:
        write_sheet(parity.worst, request.sheet)
        report(f"worst pictures: {request.sheet}")
