"""The load generator against small servers whose faults are known."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest
from alarm import Alarm
from load import Ask, Target, closed_loop, open_loop, poisson

PICTURE = b"a picture"
RIGHT = Ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", hashlib.sha256(PICTURE).digest())
Answer = Callable[[int], Awaitable[tuple[int, bytes]]]


@asynccontextmanager
async def server(answer: Answer, keep: int = 10**9):
    """Answers request number n with a status and a body; ends a connection after `keep` of them."""
    numbers, talks = iter(range(10**9)), []

    async def talk(reader, writer):
        talks.append(asyncio.current_task())
        for left in range(keep, 0, -1):
            try:
                await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            status, body = await answer(next(numbers))
            if status == 0:
                break
            last = "Connection: close\r\n" if left == 1 else ""
            head = f"HTTP/1.1 {status} So\r\n{last}Content-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listening:
        yield Target(listening.sockets[0].getsockname()[1])
        await asyncio.gather(*talks, return_exceptions=True)


def opened(answer: Answer, arrivals, connections=8, asks=(RIGHT,), **options):
    async def run():
        async with server(answer, **options) as target:
            return await open_loop(target, asks, arrivals, connections)

    return asyncio.run(run())


async def at_once(number):
    return 200, PICTURE


def test_every_request_is_asked_and_answered():
    load = opened(at_once, poisson(2000, 0.25, seed=1))
    assert load.asked == load.good.count == load.statuses[200] == len(poisson(2000, 0.25, seed=1))
    assert (load.wrong, load.unanswered) == (0, 0)


def test_a_stall_is_charged_to_all_who_would_have_asked_meanwhile():
    async def stalls_once(number):
        if number == 0:
            time.sleep(0.3)  # the whole server
        return 200, PICTURE

    arrivals = [i / 100 for i in range(40)]
    load = opened(stalls_once, arrivals, connections=1)
    assert load.good.count == 40
    assert load.good.percentile_s(50) > 0.05  # one slow answer in 40, yet half of them waited
    assert 0.29 < load.good.max_s < 2


def test_another_picture_is_wrong_and_not_counted_as_good():
    async def every_third_wrong(number):
        return 200, PICTURE if number % 3 else b"another"

    load = opened(every_third_wrong, [0.001 * i for i in range(30)], connections=1)
    assert (load.wrong, load.good.count, load.statuses[200]) == (10, 20, 30)


@pytest.mark.parametrize("status", [429, 503])
def test_refusals_are_timed_on_their_own(status):
    async def refuses(number):
        return status, b""

    load = opened(refuses, [0.0, 0.01, 0.02])
    assert (load.refused.count, load.good.count, load.unanswered) == (3, 0, 0)


def test_a_server_that_closes_its_connections_is_asked_on_new_ones():
    load = opened(at_once, [0.002 * i for i in range(60)], connections=2, keep=7)
    assert (load.good.count, load.unanswered) == (60, 0)


def test_a_connection_that_breaks_leaves_its_request_unanswered():
    async def breaks_at_five(number):
        return (0 if number == 5 else 200), PICTURE

    load = opened(breaks_at_five, [0.005 * i for i in range(20)], connections=2)
    assert (load.asked, load.good.count, load.unanswered) == (20, 19, 1)


def test_the_closed_loop_asks_as_many_at_a_time_as_it_has_connections():
    at_a_time, most = 0, 0

    async def counts(number):
        nonlocal at_a_time, most
        at_a_time += 1
        most = max(most, at_a_time)
        await asyncio.sleep(0.005)
        at_a_time -= 1
        return 200, PICTURE

    async def run():
        async with server(counts) as target:
            return await closed_loop(target, [RIGHT], 3, 0.3)

    load = asyncio.run(run())
    assert most == 3
    assert load.good.count == load.asked > 10
    assert load.rate == pytest.approx(load.good.count / load.seconds)


def test_arrivals_are_poisson_and_the_same_for_a_seed():
    arrivals = poisson(1000, 20, seed=3)
    gaps = np.diff(arrivals)
    assert arrivals == poisson(1000, 20, seed=3) != poisson(1000, 20, seed=4)
    assert len(arrivals) == pytest.approx(20_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # of an exponential they are equal
    assert arrivals[-1] < 20


def test_an_alarm_rings_once_and_not_before_its_time():
    async def run():
        rung = []
        alarm = Alarm(lambda: rung.append(time.monotonic()))
        due = time.monotonic() + 0.03
        alarm.set(due)
        await asyncio.sleep(0.2)
        alarm.close()
        return due, rung

    due, (rung,) = asyncio.run(run())
    assert due <= rung
