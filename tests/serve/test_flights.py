"""Identical requests in flight are computed once; nobody harms another who waits."""

import asyncio

import pytest
from fake_backend import FakeBackend, client_of, grey

from serve.app import create_app
from serve.errors import DeadlineError, InferenceError
from serve.flights import Flights

RED = {"prompt": "a red circle", "seed": 5}


class Counted:
    """A back end's function that counts its calls and holds them until told to go on."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = asyncio.Event()

    async def __call__(self, feeds):
        self.calls += 1
        await self.go.wait()
        return await grey(feeds)


async def until(condition) -> None:
    """Until it holds; a test that waits for ever fails after five seconds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def while_held(settings, scenario, **backend_options):
    """The result of `scenario(client, gateway, counted, backend)` with pictures held back."""

    async def run():
        counted = Counted()
        backend = FakeBackend(counted, **backend_options)
        app = create_app(settings, backend)
        async with client_of(app) as client:
            return await scenario(client, app.state.gateway, counted, backend)

    return asyncio.run(run())


def posts(client, count, body=RED, headers=None):
    return [
        asyncio.create_task(client.post("/generate", json=body, headers=headers))
        for _ in range(count)
    ]


def test_identical_requests_are_computed_once_and_answered_alike(settings):
    async def scenario(client, gateway, counted, backend):
        waiting = posts(client, 10)
        await until(lambda: gateway.repository.get().flights.shared == 9)
        in_work = gateway.repository.get().admission._open
        counted.go.set()
        return await asyncio.gather(*waiting), counted.calls, in_work, gateway.repository.idle

    answers, calls, in_work, idle = while_held(settings, scenario)
    assert (calls, in_work, idle) == (1, 1, True)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["x-request-id"] for answer in answers}) == 10


def test_requests_that_differ_in_anything_are_computed_apart(settings):
    bodies = [RED, RED | {"seed": 6}, RED | {"prompt": "blue"}, RED | {"format": "jpeg"}]
    bodies += [RED | {"format": "jpeg", "quality": 3}, RED | {"num_images": 2}]

    async def scenario(client, gateway, counted, backend):
        waiting = [post for body in bodies for post in posts(client, 1, body)]
        counted.go.set()
        await asyncio.gather(*waiting)
        return counted.calls, gateway.repository.get().flights.shared

    assert while_held(settings, scenario) == (7, 0)


def test_once_answered_a_request_is_computed_again(settings):
    async def scenario(client, gateway, counted, backend):
        counted.go.set()
        for _ in range(3):
            await client.post("/generate", json=RED)
        return counted.calls, gateway.repository.get().flights._flights

    assert while_held(settings, scenario) == (3, {})


def test_a_caller_who_leaves_does_not_take_the_picture_from_the_others(settings):
    async def scenario(client, gateway, counted, backend):
        first, second, third = posts(client, 3)
        await until(lambda: gateway.repository.get().flights.shared == 2)
        first.cancel()
        third.cancel()
        await asyncio.wait([first, third])
        counted.go.set()
        return (await second).status_code, counted.calls

    assert while_held(settings, scenario) == (200, 1)


def test_the_last_who_leaves_ends_the_work_and_the_next_begins_anew(settings):
    async def scenario(client, gateway, counted, backend):
        leaving = posts(client, 2)
        await until(lambda: gateway.repository.get().flights.shared == 1)
        for post in leaving:
            post.cancel()
        await asyncio.wait(leaving)
        await until(lambda: not backend.pending and gateway.repository.idle)
        (again,) = posts(client, 1)
        await until(lambda: counted.calls == 2)
        counted.go.set()
        return (await again).status_code

    assert while_held(settings, scenario) == 200


def test_an_error_reaches_every_caller(settings):
    async def failing(feeds):
        await asyncio.sleep(0.05)
        raise InferenceError("the model failed on this picture")

    async def run():
        app = create_app(settings, FakeBackend(failing))
        async with client_of(app) as client:
            answers = await asyncio.gather(*posts(client, 4))
            return answers, app.state.gateway.repository.get().flights.shared

    answers, shared = asyncio.run(run())
    assert shared == 3
    assert [answer.status_code for answer in answers] == [500] * 4
    assert {answer.json()["detail"] for answer in answers} == {"the model failed on this picture"}


def test_a_shared_picture_that_comes_too_late_is_refused_at_once(settings):
    async def scenario(client, gateway, counted, backend):
        (first,) = posts(client, 1)
        await until(lambda: counted.calls == 1)
        hurried = await client.post("/generate", json=RED, headers={"X-Deadline-Ms": "2000"})
        counted.go.set()
        return hurried, (await first).status_code, counted.calls

    hurried, first, calls = while_held(settings, scenario, wait_s=9.0)
    assert (hurried.status_code, first, calls) == (429, 200, 1)
    assert hurried.json()["detail"].startswith("in work for another caller and ready in ")
    assert hurried.headers["retry-after"] == "9"


def test_who_joins_waits_no_longer_than_its_own_deadline(settings):
    async def scenario(client, gateway, counted, backend):
        (first,) = posts(client, 1)
        await until(lambda: counted.calls == 1)
        async with asyncio.timeout(5):
            hurried = await client.post("/generate", json=RED, headers={"X-Deadline-Ms": "50"})
        counted.go.set()
        return hurried, (await first).status_code, counted.calls

    hurried, first, calls = while_held(settings, scenario)
    assert (hurried.status_code, first, calls) == (429, 200, 1)
    assert hurried.json()["detail"].endswith("the deadline has passed")
    assert hurried.headers["retry-after"] == "1"


def test_a_draining_gateway_lets_nobody_join(settings):
    async def scenario(client, gateway, counted, backend):
        (first,) = posts(client, 1)
        await until(lambda: counted.calls == 1)
        gateway.drain.begun = True
        late = await client.post("/generate", json=RED)
        counted.go.set()
        return late.status_code, (await first).status_code

    assert while_held(settings, scenario) == (503, 200)


def test_the_deadline_of_who_began_does_not_end_the_wait_of_who_has_more_time(settings):
    calls = []

    async def late_once(feeds):
        calls.append(1)
        if len(calls) == 1:
            await asyncio.sleep(0.05)
            raise DeadlineError("the first caller's time is over", 1.0)
        return await grey(feeds)

    async def run():
        async with client_of(create_app(settings, FakeBackend(late_once))) as client:
            return await asyncio.gather(*posts(client, 3))

    assert [answer.status_code for answer in asyncio.run(run())] == [429, 200, 200]
    assert len(calls) == 2


def test_a_flight_that_began_later_under_the_same_key_is_kept():
    async def run():
        flights = Flights[int]()
        never = asyncio.create_task(asyncio.sleep(60, 1))
        flights.begin("a", never, 1.0)
        never.cancel()
        assert flights.find("a") is None
        second = flights.begin("a", asyncio.create_task(asyncio.sleep(0.02, 2)), 1.0)
        await asyncio.wait([never])
        await asyncio.sleep(0)
        assert flights.find("a") is second
        assert 0 < second.left_s <= 1
        return await second.result()

    assert asyncio.run(run()) == 2


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_both_apis_share(settings, path):
    async def scenario(client, gateway, counted, backend):
        waiting = [*posts(client, 1), asyncio.create_task(client.post(path, json=RED))]
        await until(lambda: gateway.repository.get().flights.shared == 1)
        counted.go.set()
        return [answer.status_code for answer in await asyncio.gather(*waiting)], counted.calls

    assert while_held(settings, scenario) == ([200, 200], 1)
