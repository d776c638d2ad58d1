"""An alarm clock for an event loop that is right to some 50 microseconds: Linux's timerfd.

The loops' own timers count in milliseconds, which is as long as a fast answer takes.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

TFD_TIMER_ABSTIME = 1
TFD_NONBLOCK = os.O_NONBLOCK


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Alarm:
    """Calls `ring` on the running loop at each time that was last set. Linux only."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_time)

    def set(self, when: float) -> None:
        """Ring at `when` of time.monotonic; at once if that has passed."""
        seconds, rest = divmod(max(1, int(when * 1e9)), 1_000_000_000)
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(seconds, rest))
        if self._libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Ring no more."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _on_time(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew meanwhile
            return
        self._ring()
