"""Log lines: what stands in them, and what becomes of those that cannot be written."""

import fcntl
import json
import logging
import os
import re
import select
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path

import pytest

from serve import logs, stamps, trace_context
from serve.settings import Settings
from serve.stamps import Stamp
from serve.trace_context import TraceContext

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
COUNT = 300

log = logging.getLogger("a.test")


@contextmanager
def logging_to(fd: int, **settings: str) -> Iterator[None]:
    """All loggers write to a descriptor, and no longer."""
    root = logging.getLogger()
    before = root.level
    logs.configure(Settings(**settings), fd)
    try:
        yield
    finally:
        root.setLevel(before)
        for handler in [one for one in root.handlers if isinstance(one, logs.Lines)]:
            root.removeHandler(handler)


@pytest.fixture
def written(tmp_path):
    """A call that runs a function while its log goes to a file, and gives the lines."""

    def run(function, **settings: str) -> list[str]:
        path = tmp_path / "log"
        with path.open("wb") as file, logging_to(file.fileno(), **settings):
            copy_context().run(function)  # what it says of a request ends with it
        return path.read_text().splitlines()

    return run


def failing() -> None:
    try:
        raise ZeroDivisionError("of\nthe house")
    except ZeroDivisionError:
        log.exception("it %s", "failed")


def test_a_json_line_is_one_object_with_time_level_logger_and_message(written):
    (line,) = written(lambda: log.warning("a %s\nb", "é"), log_format="json")
    found = json.loads(line)
    assert re.fullmatch(TIME, found.pop("time"))
    assert found == {"level": "warning", "logger": "a.test", "message": "a é\nb"}


def test_a_traceback_stays_inside_the_object(written):
    (line,) = written(failing, log_format="json")
    trace = json.loads(line)["traceback"]
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.endswith("ZeroDivisionError: of\nthe house")


def test_a_text_line_is_for_people_and_its_traceback_is_indented(written):
    first, *trace = written(failing)
    assert re.fullmatch(rf"{TIME} ERROR a\.test: it failed", first)
    assert trace[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in trace)


def test_nothing_in_a_text_line_can_look_like_another_line(written):
    facts = {"path": '/a\n2026 b" c', "route": "/v1/models/{id}", "n": 3}
    (line,) = written(lambda: log.info("x\n\x1b[31my\x9b", extra={"facts": facts}))
    assert line.split("a.test: ")[1] == (
        r"x\x0a\x1b[31my\x9b " r'path="/a\n2026 b\" c" route="/v1/models/{id}" n=3'
    )


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_line_of_a_request_has_its_id_and_its_trace(written, format):
    def work() -> None:
        stamps.put({}, Stamp("job-7"))
        trace_context.enter(TraceContext("a" * 32, "b" * 16, "01"))
        log.info("drawn", extra={"facts": {"model": "tiny/1"}})

    (line,) = written(work, log_format=format)
    for name, value in (("request_id", "job-7"), ("trace_id", "a" * 32), ("model", "tiny/1")):
        assert f'"{name}": "{value}"' in line or f" {name}={value}" in line


def test_the_level_holds_for_every_logger(written):
    def work() -> None:
        logging.getLogger("uvicorn.error").warning("seen")
        logging.getLogger("uvicorn.error").info("not seen")

    (line,) = written(work, log_level="warning")
    assert line.endswith("WARNING uvicorn.error: seen")


@pytest.mark.parametrize("formatter", [logs.AsText(), logs.AsJson()])
def test_a_call_whose_arguments_do_not_fit_is_written_as_it_is(formatter):
    record = logging.LogRecord("a", logging.INFO, "", 0, "%d pictures", ("many",), None)
    assert "%d pictures ('many',)" in formatter.format(record)


def test_configuring_again_replaces_the_lines_of_before(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    with first.open("wb") as one, second.open("wb") as two, logging_to(one.fileno()):
        logs.configure(Settings(), two.fileno())
        log.info("once")
    assert (first.read_text(), second.read_text().count("once")) == ("", 1)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """A small pipe, both ends open."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 16384)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def drained(reading: int) -> str:
    found = b""
    while select.select([reading], [], [], 0)[0]:
        found += os.read(reading, 65536)
    return found.decode()


def test_a_reader_that_stops_costs_lines_and_no_time_and_is_told_how_many():
    with pipe() as (reading, writing), logging_to(writing):
        for number in range(COUNT):  # would block for ever on a pipe that is full
            log.info("line %d %s", number, "x" * 100)
        first = drained(reading)
        log.info("the reader is back")
        lines = (first + drained(reading)).splitlines()
    kept = len(lines) - 2
    assert 50 < kept < COUNT
    assert lines[-2].endswith(f"{COUNT - kept} lines could not be written and are lost")
    assert lines[-1].endswith("the reader is back")
    assert [int(re.search(r"line (\d+)", line)[1]) for line in lines[:kept]] == list(range(kept))


def test_a_line_that_was_begun_is_ended_before_another():
    with pipe() as (reading, writing), logging_to(writing, log_format="json"):
        log.info("long %s", "y" * 30_000)
        log.info("lost")
        found = ""
        for _ in range(3):
            found += drained(reading)
            log.info("short")
        lines = [json.loads(line) for line in (found + drained(reading)).splitlines()]
    assert lines[0]["message"] == "long " + "y" * 30_000
    assert {line["message"] for line in lines[1:]} >= {"short"}
    assert "lost" not in {line["message"] for line in lines}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_and_a_closed_pipe_are_no_errors_of_the_caller():
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        for fd in (full.fileno(), writing):
            with logging_to(fd):
                failing()
    os.close(writing)
