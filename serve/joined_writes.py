"""A transport that sends an answer's head together with the first of its body.

uvicorn writes them one after the other, which costs the gateway a second call into the kernel and
the client a second wake-up for each answer.
"""

import asyncio
from typing import Any


class JoinedWrites:
    """In front of a transport: a write waits for one that follows in the same turn of the loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None
        self._soon: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:
        """Hold the first of two; send both with the second, or the first alone soon."""
        if self._held is None:
            self._held = data
            self._soon = self._loop.call_soon(self.flush)
        else:
            held, self._held = self._held, None
            assert self._soon is not None, "what is held is sent soon"
            self._soon.cancel()
            self._transport.writelines([held, data])

    def flush(self) -> None:
        """Send what is held."""
        held, self._held = self._held, None
        if held is not None and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        """Close once everything is sent."""
        self.flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        """Bytes that are not on their way yet, held ones included."""
        return self._transport.get_write_buffer_size() + len(self._held or b"")

    def __getattr__(self, name: str) -> Any:
        """All else is the transport's."""
        return getattr(self._transport, name)
