"""Log lines, as text for people or as JSON for machines, that no request ever waits for.

A line that cannot be written at once (a full disk, a closed pipe, a reader that has stopped) is
lost; the next line that can be says how many were.
"""

import json
import logging
import os
import re
import select
import time
from typing import Any

from serve.settings import Settings
from serve.stamps import current_id
from serve.trace_context import trace_id

STDERR = 2
PLAIN = re.compile(r"[A-Za-z0-9_.:+=/@-]+")
# what could forge a line or talk to a terminal
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
encoded = json.JSONEncoder(default=str).encode
FAULTY = (TypeError, ValueError, KeyError)  # a call of the log whose arguments do not fit its text


def configure(settings: Settings, fd: int = STDERR) -> None:
    """From now on all loggers of the process write lines to a file descriptor."""
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, Lines)]:
        root.removeHandler(handler)
    handler = Lines(fd)
    handler.setFormatter(AsJson() if settings.log_format == "json" else AsText())
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())


class Lines(logging.Handler):
    """Writes each record as a line, whole or not at all, without waiting."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)
        self._rest = b""  # the end of a line that was begun
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, or count it as lost."""
        lines = self.format(record) + "\n"
        if self._lost:
            lines = self.format(_notice(self._lost)) + "\n" + lines
        line = lines.encode("utf-8", "backslashreplace")
        written = self._write(self._rest + line)
        if written <= len(self._rest):
            self._rest = self._rest[written:]
            self._lost += 1
        else:
            self._rest = line[written - len(self._rest) :]
            self._lost = 0

    def _write(self, data: bytes) -> int:
        """How many bytes went out. What a pipe has room for is at least PIPE_BUF bytes."""
        written = 0
        while written < len(data) and self._takes():
            try:
                written += os.write(self._fd, data[written : written + select.PIPE_BUF])
            except OSError:
                break
        return written

    def _takes(self) -> bool:
        return any(events & select.POLLOUT for _, events in self._room.poll(0))


class AsJson(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """time, level, logger, message, request_id and trace_id where there are, and the facts."""
        found = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **_context(record),
        }
        trace = _traceback(self, record)
        return encoded(found | ({"traceback": trace} if trace else {}))


class AsText(logging.Formatter):
    """One line, and a traceback indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """time LEVEL logger: message name=value ...; no value can look like another line."""
        facts = "".join(f" {name}={_quoted(value)}" for name, value in _context(record).items())
        message = _message(record).translate(CONTROLS)
        line = f"{_time(record)} {record.levelname} {record.name}: {message}{facts}"
        trace = _traceback(self, record).splitlines()
        return "\n  ".join([line, *(row.translate(CONTROLS) for row in trace)])


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, UTC, milliseconds."""
    seconds, ms = divmod(int(record.created * 1e3), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03d}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except FAULTY:
        return f"{record.msg} {record.args!r}"


def _context(record: logging.LogRecord) -> dict[str, Any]:
    """What is known beside the message: the request's id, its trace, and the record's facts."""
    known = {"request_id": current_id(), "trace_id": trace_id()}
    return {name: value for name, value in known.items() if value} | getattr(record, "facts", {})


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    parts += [formatter.formatStack(record.stack_info)] if record.stack_info else []
    return "\n".join(parts)


def _quoted(value: object) -> str:
    text = str(value)
    return (
        text
        if isinstance(value, int | float) or PLAIN.fullmatch(text)
        else json.dumps(text, ensure_ascii=False)
    )


def _notice(lost: int) -> logging.LogRecord:
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "", None, None)
    record.msg = f"{lost} lines could not be written and are lost"
    return record
