"""The window in front of Triton: how many are sent, in which order, and what is never sent."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from serve.backend import Inferred
from serve.errors import DeadlineError, InferenceError, NotReadyError
from serve.metrics import Metrics
from serve.triton_window import Window
from serve.turn import Turn

FLOOD, LIGHT = Turn("flood"), Turn("light")


class Server:
    """Takes what is sent, and answers one picture at a time when the test says so."""

    def __init__(self) -> None:
        self.sent: list[object] = []
        self.most = 0
        self.held: list[asyncio.Future[None]] = []
        self.at_the_end = lambda: None

    async def send(self, item) -> Inferred:
        self.sent.append(item.feeds)
        answered = asyncio.get_running_loop().create_future()
        self.held.append(answered)
        self.most = max(self.most, len(self.held))
        try:
            await answered
        finally:
            self.held.remove(answered)
            asyncio.get_running_loop().call_soon(self.at_the_end)
        return Inferred(item.feeds, 0.0, 0.0)

    async def answer(self) -> None:
        """The oldest that it holds, and wait until the next has been sent."""
        await settled()
        self.held[0].set_result(None)
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def opened(size, metrics=None):
    """A window, its server, and a function that asks: ask(name, turn, within_s)."""
    server = Server()
    window = Window(size, server.send, (metrics or Metrics("")).model("tiny"))

    asked: list[asyncio.Future[Inferred]] = []

    def ask(name, turn=LIGHT, within_s=60.0):
        asked.append(window.put(name, within_s, turn, {}))
        return asked[-1]

    try:
        yield window, server, ask
    finally:
        await window.close()
        await asyncio.gather(*asked, return_exceptions=True)


def test_no_more_are_sent_than_the_window_takes_and_all_are_answered():
    async def scenario():
        async with opened(3) as (window, server, ask):
            futures = [ask(index) for index in range(10)]
            await settled()
            assert (window.in_flight, window.waiting, window.before(LIGHT, 2)) == (3, 7, 11)
            for _ in range(10):
                await server.answer()
            return server.most, [future.result().pixels for future in futures]

    assert asyncio.run(scenario()) == (3, [*range(10)])


def test_one_that_floods_does_not_keep_another_waiting_and_batch_comes_after_interactive():
    async def scenario():
        async with opened(2) as (_, server, ask):
            for index in range(8):
                ask(f"flood {index}", FLOOD)
            for index in range(3):
                ask(f"late {index}", Turn("light", "batch"))
            ask("light", LIGHT)
            for _ in range(8):
                await server.answer()
            return server.sent

    sent = asyncio.run(scenario())
    assert sent[:2] == ["flood 0", "flood 1"]
    assert "light" in sent[2:5]
    assert [name for name in sent if name.startswith("late")] == ["late 0"]


def test_what_is_cancelled_is_never_sent_or_is_ended_and_each_is_counted():
    metrics = Metrics("")

    async def scenario():
        async with opened(1, metrics) as (window, server, ask):
            running, waiting, last = ask("running"), ask("waiting"), ask("last")
            await settled()
            waiting.cancel()
            await settled()
            assert window.waiting == 1
            running.cancel()
            await settled()
            await server.answer()
            assert last.done()
            return server.sent

    assert asyncio.run(scenario()) == ["running", "last"]
    text = metrics.text()[0].decode()
    for phase in ("queued", "running"):
        assert f'singlepass_cancelled_total{{model="tiny",phase="{phase}"}} 1.0' in text


def test_one_that_is_cancelled_in_the_moment_in_which_its_turn_comes_is_not_sent():
    async def scenario():
        async with opened(1) as (window, server, ask):
            ask("running")
            gone = ask("gone")
            await settled()
            server.at_the_end = gone.cancel
            await server.answer()
            return server.sent, window.in_flight, window.waiting

    assert asyncio.run(scenario()) == (["running"], 0, 0)


def test_a_deadline_is_kept_in_the_queue_and_looked_at_when_it_is_sent():
    async def scenario():
        async with opened(1) as (window, server, ask):
            ask("running", within_s=float("inf"))
            late, patient = ask("late", within_s=0.01), ask("patient", within_s=float("inf"))
            await asyncio.sleep(0.03)
            assert isinstance(late.exception(), DeadlineError)
            assert window.waiting == 1
            over = ask("over", within_s=0.0)
            await server.answer()
            with pytest.raises(DeadlineError, match="the deadline passed before Triton was asked"):
                await over
            await server.answer()
            assert patient.done()
            with pytest.raises(DeadlineError, match="the deadline passed before Triton was asked"):
                await ask("over where there is room", within_s=0.0)
            return server.sent

    assert asyncio.run(scenario()) == ["running", "patient"]


def test_what_waits_can_be_refused_and_what_was_sent_keeps_its_answer():
    async def scenario():
        async with opened(1) as (window, server, ask):
            sent, waits = ask("sent"), ask("waits")
            await settled()
            window.refuse(lambda: NotReadyError("Triton is away", 1.0))
            await server.answer()
            return sent.result().pixels, waits.exception(), window.waiting

    picture, error, waiting = asyncio.run(scenario())
    assert (picture, str(error), waiting) == ("sent", "Triton is away", 0)


def test_closing_fails_what_was_sent_and_what_waits():
    async def scenario():
        async with opened(1) as (window, _, ask):
            futures = [ask("sent"), ask("waits")]
            await settled()
            await window.close()
            return [future.exception() for future in futures]

    errors = asyncio.run(scenario())
    assert [str(error) for error in errors] == ["the gateway has stopped"] * 2
    assert {type(error) for error in errors} == {InferenceError}


def test_a_failure_is_the_callers_and_the_next_is_sent():
    async def scenario():
        async with opened(1) as (_, server, ask):
            bad, good, left = ask("bad"), ask("good"), ask("left")
            await settled()
            server.held[0].set_exception(InferenceError("it failed"))
            await settled()
            await server.answer()
            server.held[0].set_exception(InferenceError("nobody looks"))
            left.cancel()
            await settled()
            return bad.exception(), good.done(), left.cancelled()

    error, *rest = asyncio.run(scenario())
    assert (str(error), rest) == ("it failed", [True, True])
