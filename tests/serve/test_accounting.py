"""What a request for pictures is counted as, who pays for it, and whose turn it takes."""

import asyncio
import logging
import threading

import pytest
from fake_backend import FakeBackend, client_of, grey
from prometheus_client.parser import text_string_to_metric_families

from serve import generate
from serve.app import create_app
from serve.errors import DeadlineError
from serve.keys import make_key
from serve.turn import Turn

RED = {"prompt": "a red circle", "seed": 5}


class Held:
    """A back end's function that counts its calls and holds them until told to go on."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = asyncio.Event()

    async def __call__(self, feeds):
        self.calls += 1
        await self.go.wait()
        return await grey(feeds)


def talk(settings, scenario, function=grey):
    """The result of `scenario(client, backend)`, and the gateway's figures after it."""

    async def run():
        backend = FakeBackend(function)
        async with client_of(create_app(settings, backend)) as client:
            result = await scenario(client, backend)
            return result, (await client.get("/metrics")).text

    return asyncio.run(run())


def total(metrics: str, name: str, **labels: str) -> float:
    """The sum over the samples of this name that have these labels."""
    samples = (s for family in text_string_to_metric_families(metrics) for s in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def posts(client, *bodies, **options):
    return [asyncio.create_task(client.post("/generate", json=b, **options)) for b in bodies]


@pytest.fixture
def alice(settings, tmp_path):
    """Settings with one key, which may have 4 pictures an hour, and its header."""
    key, lines = make_key("alice")
    path = tmp_path / "keys.toml"
    path.write_text(lines + 'rate = "4/hour"\n')
    path.chmod(0o600)
    return settings.model_copy(update={"keys": path}), {"Authorization": f"Bearer {key}"}


def test_pictures_are_counted_once_however_many_share_them(settings):
    async def scenario(client, backend):
        held = backend.function
        waiting = posts(client, *[RED | {"num_images": 2}] * 3)
        await until(lambda: held.calls == 2)
        await asyncio.sleep(0.05)
        held.go.set()
        await asyncio.gather(*waiting)

    _, metrics = talk(settings, scenario, Held())
    assert total(metrics, "singlepass_pictures_total", model="tiny") == 2
    assert total(metrics, "singlepass_reused_total", how="in_flight") == 2
    for stage in ("queue", "tokenize", "infer", "encode"):
        assert total(metrics, "singlepass_stage_duration_seconds_count", stage=stage) == 1


def test_an_answer_without_a_body_is_counted_as_reused_and_costs_nothing(alice):
    settings, headers = alice

    async def scenario(client, backend):
        matching = headers | {"If-None-Match": "*"}
        told = [await client.post("/generate", json=RED, headers=matching) for _ in range(5)]
        several = await client.post("/generate", json=RED | {"num_images": 4}, headers=headers)
        return {answer.status_code for answer in told}, several.status_code

    statuses, metrics = talk(settings, scenario)
    assert statuses == ({304}, 200)
    assert total(metrics, "singlepass_reused_total", how="etag") == 5
    assert total(metrics, "singlepass_pictures_total") == 4


def test_who_joins_pays_as_who_began(alice):
    settings, headers = alice

    async def scenario(client, backend):
        held = backend.function
        waiting = posts(client, *[RED | {"num_images": 2}] * 3, headers=headers)
        await until(lambda: any(task.done() for task in waiting))
        held.go.set()
        return sorted([answer.status_code for answer in await asyncio.gather(*waiting)])

    statuses, metrics = talk(settings, scenario, Held())
    assert statuses == [200, 200, 429]
    assert total(metrics, "singlepass_refused_total", reason="rate-limited") == 1


def test_who_joins_a_flight_that_came_too_late_and_begins_anew_pays_once(alice):
    settings, headers = alice
    calls = []

    async def late_once(feeds):
        calls.append(1)
        if len(calls) <= 2:
            await asyncio.sleep(0.05)
            raise DeadlineError("the first caller's time is over", 1.0)
        return await grey(feeds)

    async def scenario(client, backend):
        waiting = posts(client, *[RED | {"num_images": 2}] * 2, headers=headers)
        return [answer.status_code for answer in await asyncio.gather(*waiting)]

    statuses, _ = talk(settings, scenario, late_once)
    assert statuses == [429, 200]  # 4 pictures in all: a third charge would be too many


def test_orders_of_two_priorities_do_not_share_and_keep_their_turns(settings):
    async def scenario(client, backend):
        held = backend.function
        waiting = posts(client, RED, headers={"X-Priority": "batch"}) + posts(client, RED, RED)
        await until(lambda: held.calls == 2)
        held.go.set()
        return [a.status_code for a in await asyncio.gather(*waiting)], backend.turns

    (statuses, turns), metrics = talk(settings, scenario, Held())
    assert statuses == [200, 200, 200]
    assert {*turns} == {Turn("anonymous", "batch"), Turn("anonymous", "interactive")}
    assert total(metrics, "singlepass_reused_total", how="in_flight") == 1


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_the_log_has_who_asked_for_what_and_where_the_time_went(alice, path, caplog):
    settings, headers = alice

    async def scenario(client, backend):
        await client.post(path, json=RED, headers=headers)

    with caplog.at_level(logging.INFO):
        talk(settings, scenario)
    (facts,) = [r.facts for r in caplog.records if getattr(r, "facts", {}).get("route") == path]
    expected = {"caller": "alice", "model": "tiny/1", "pictures": 1, "seed": 5, "status": 200}
    assert facts.items() >= expected.items()
    assert {"queue_ms", "tokenize_ms", "infer_ms", "encode_ms"} <= facts.keys()
    assert "prompt" not in facts


def test_who_leaves_while_the_files_are_made_is_counted_so(settings, monkeypatch):
    release = threading.Event()

    def slow(*arguments):
        release.wait(5)
        return b""

    async def scenario(client, backend):
        monkeypatch.setattr(generate, "encode", slow)
        served = client._transport.app.state.gateway.repository.get()
        order = generate.read_order(
            generate.parse_fields(RED | {"num_images": 2}), served.model, settings
        )
        making = asyncio.create_task(served.generator.generate(order))
        await until(lambda: len(backend.within_s) == 2 and not backend.pending)
        await asyncio.sleep(0.01)
        making.cancel()
        await asyncio.wait([making])
        release.set()
        return making.cancelled()

    cancelled, metrics = talk(settings, scenario)
    assert cancelled
    assert total(metrics, "singlepass_cancelled_total", phase="encoding") == 2
    assert total(metrics, "singlepass_pictures_total") == 0


def test_a_caller_is_known_before_the_body_is_read(alice):
    settings, _ = alice
    read = []

    async def body():
        read.append(1)
        yield b"{}"

    async def scenario(client, backend):
        kind = {"Content-Type": "application/json"}
        return (await client.post("/generate", content=body(), headers=kind)).status_code

    status, metrics = talk(settings, scenario)
    assert status == 401
    assert total(metrics, "singlepass_refused_total", reason="unauthorized") == 1
    assert read == []
