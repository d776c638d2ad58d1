"""One kept-alive HTTP/1.1 connection: bytes of a request out, an answer in, no futures between."""

import asyncio
from collections.abc import Callable

import httptools


class Answer:
    """The answer to one request; `status` 0: the connection broke before it was whole."""

    __slots__ = ("body", "headers", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""


class Connection(asyncio.Protocol):
    """Sends one request at a time; `on_answer` is called with each answer, whole or broken."""

    def __init__(self) -> None:
        self.on_answer: Callable[[Connection, Answer], None] = lambda connection, answer: None
        self.open = False
        self._transport: asyncio.Transport
        self._waiting = False
        self._clear()

    def send(self, request: bytes) -> None:
        """Send a request; the one before must have been answered."""
        assert not self._waiting, "a request is in work on this connection"
        self._waiting = True
        self._clear()
        self._transport.write(request)

    @property
    def closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Leave; a request in work counts as broken."""
        self._transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.open = True

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._waiting:
            self._answered()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, part: bytes) -> None:
        self._answer.body += part

    def on_message_complete(self) -> None:
        self._answer.status = self._status
        if not self._parser.should_keep_alive():
            self.open = False
        self._answered()

    def _clear(self) -> None:
        self._answer = Answer()
        self._status = 0
        self._parser = httptools.HttpResponseParser(self)

    def _answered(self) -> None:
        self._waiting = False
        self.on_answer(self, self._answer)


async def connect(host: str, port: int, count: int) -> list[Connection]:
    """That many open connections; raises OSError."""
    loop = asyncio.get_running_loop()
    made = [loop.create_connection(Connection, host, port) for _ in range(count)]
    return [connection for _, connection in await asyncio.gather(*made)]
