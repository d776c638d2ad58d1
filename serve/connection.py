"""One client's connection, with an end to what it can hold: uvicorn's waits for ever.

A client that dawdles with its headers, or sends too many, or does not take its answer, costs a
descriptor and some memory, for a bounded time. The body's time is bounded where it is read.
"""

import asyncio
import json
import logging
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve import problems
from serve.joined_writes import JoinedWrites
from serve.stamps import REQUEST_ID_HEADER, new_id

HEAD_S = 10.0  # from a request's first byte, or a connection's start, to the end of its headers
HEAD_BYTES = 32_768  # of the request line and the headers
TAKE_S, TAKE_BYTES = 10.0, 65_536  # so much of an answer has to be taken in this time, or its rest
# Between two requests: longer than a proxy in front keeps an idle connection (60 s is usual), so
# that it is the proxy that closes, and never we just as it sends a request.
IDLE_S = 75.0
LINGER_S = 1.0  # for a body of which no more is read, so that the client hears why

log = logging.getLogger(__name__)


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, but no longer patient without limits."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.timeout_keep_alive = IDLE_S  # type: ignore[assignment]
        self._head_timer: asyncio.TimerHandle | None = None
        self._take_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_bytes = 0
        self._untaken_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there, and has yet to ask."""
        super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type]
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or has been left."""
        for timer in (self._head_timer, self._take_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._head_timer is None:
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header."""
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """The request can be answered from here on."""
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body's end, also of one that nobody read."""
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Some bytes, of which the parser may keep what is no whole header yet."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or one whose head is too large."""
        if self._head_bytes > HEAD_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the request line and headers are too large, allowed are {HEAD_BYTES} bytes",
            )
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request")

    def on_response_complete(self) -> None:
        """The answer is on its way; the client has to take it."""
        super().on_response_complete()
        # the latest request may be another one, which waits for its turn
        if self.cycle.response_complete and self.cycle.more_body:
            self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)
        self._untaken_bytes = self.transport.get_write_buffer_size()
        if self._untaken_bytes and self._take_timer is None:
            self._take_timer = self.loop.call_later(TAKE_S, self._check_taken)

    def _count(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > HEAD_BYTES:
            raise ValueError("the head is too large")  # the parser stops, and a 400 is sent

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._check_head)

    def _check_head(self) -> None:
        """The headers took too long; not while an earlier request is still being answered."""
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_head()
        elif self._in_head:
            detail = f"the headers took longer than {HEAD_S:.0f} s"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, detail)
        else:
            self.transport.close()

    def _check_taken(self) -> None:
        self._take_timer = None
        left = self.transport.get_write_buffer_size()
        if left == 0:
            return
        if left > self._untaken_bytes - TAKE_BYTES:
            self.transport.abort()
        else:
            self._untaken_bytes = left
            self._take_timer = self.loop.call_later(TAKE_S, self._check_taken)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer without a request that could be routed, and close: no other log knows of it."""
        request_id = new_id()
        slug = status.phrase.lower().replace(" ", "-")
        content = json.dumps(problems.problem(status, slug, detail, (), request_id)).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"content-type: {problems.MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\n"
            f"{REQUEST_ID_HEADER.lower()}: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + content)
        self.transport.close()
        client = self.client[0] if self.client else None
        facts = {"request_id": request_id, "status": status.value, "client": client}
        log.info("%s", detail, extra={"facts": facts | {"problem": slug}})
