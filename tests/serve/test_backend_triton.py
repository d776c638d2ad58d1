"""The back end on Triton, on a fake of its client: readiness, deadlines, errors, cancelling."""

import asyncio
import logging
import socket
import sys
from contextlib import asynccontextmanager

import numpy as np
import pytest
from fake_backend import client_of
from fake_triton import FakeTriton, never, refusal, refusing, response_of
from tritonclient.grpc import model_config_pb2

from serve import backend_triton
from serve.app import create_app
from serve.backend_ort import OrtBackend
from serve.backend_triton import TritonBackend
from serve.errors import (
    DeadlineError,
    InferenceError,
    NotReadyError,
    QueueFullError,
    RepositoryError,
    SettingsError,
)
from serve.triton_errors import TABLE, error_of
from serve.turn import Turn

ANYBODYS = Turn()


@asynccontextmanager
async def opened(model, fake, in_flight=32):
    backend = TritonBackend(model, "triton:8001", in_flight, connect=fake)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


def feeds_of(model, seed=1):
    return {**model.tokenize("a red circle"), "noise": model.noise(seed)}


def infer(model, fake, within_s=5.0, turn=ANYBODYS):
    """One picture by a back end that lives for it."""

    async def scenario():
        async with opened(model, fake) as backend:
            return await backend.infer(feeds_of(model), within_s, turn)

    return asyncio.run(scenario())


def state(model, fake):
    async def scenario():
        async with opened(model, fake) as backend:
            return backend.ready, backend.why_not

    return asyncio.run(scenario())


def test_a_picture_is_sent_alone_to_the_version_of_the_manifest(model):
    ort = OrtBackend(model, threads=1, measure_s=0)
    asyncio.run(ort.start())

    async def draw(feeds):
        assert all(len(rows) == 1 for rows in feeds.values())
        return np.stack(ort.run([{name: rows[0] for name, rows in feeds.items()}]))

    fake = FakeTriton(model, draw)
    answer = infer(model, fake)
    assert np.array_equal(answer.pixels, ort.run([feeds_of(model)])[0])
    assert 0 <= answer.queue_s < 1
    assert answer.infer_s > 0
    (asked,) = fake.asked
    assert (asked.request.model_name, asked.request.model_version) == ("tiny", "1")
    assert fake.closed


def test_the_deadline_is_the_requests_timeout_at_triton_and_the_calls(model):
    fake = FakeTriton(model)
    infer(model, fake, within_s=0.25)
    infer(model, fake, within_s=float("inf"))
    bounded, unbounded = fake.asked
    assert 0.2 < bounded.timeout_s <= 0.25
    told_us = bounded.request.parameters["timeout"].int64_param
    assert told_us == pytest.approx(bounded.timeout_s * 1e6, abs=1)
    assert unbounded.timeout_s is None
    assert "timeout" not in unbounded.request.parameters


def test_a_deadline_that_has_passed_is_not_sent(model):
    fake = FakeTriton(model)
    with pytest.raises(DeadlineError, match="passed before Triton was asked"):
        infer(model, fake, within_s=0)
    assert fake.asked == []


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineError),
        ("UNAVAILABLE", "[request id: <id_unknown>] Request timeout expired", DeadlineError),
        ("UNAVAILABLE", "[request id: x] Exceeds maximum queue size", QueueFullError),
        ("UNAVAILABLE", "failed to connect to all addresses", NotReadyError),
        ("NOT_FOUND", "Request for unknown model", NotReadyError),
        ("CANCELLED", "", NotReadyError),
        ("INVALID_ARGUMENT", "unexpected shape for input", InferenceError),
        ("INTERNAL", "onnx runtime error 6", InferenceError),
    ],
)
def test_each_refusal_of_triton_is_one_of_our_errors(model, status, message, error):
    with pytest.raises(error) as caught:
        infer(model, FakeTriton(model, refusing(status, message)))
    assert message not in str(caught.value) or not message
    assert getattr(caught.value, "retry_after_s", 1.0) >= 1.0


def test_a_failure_is_in_the_log_and_every_row_of_the_table_can_be_reached(caplog):
    assert isinstance(error_of("UNKNOWN", "out of order", 1.0), InferenceError)
    assert "UNKNOWN: out of order" in caplog.text
    for row in TABLE:
        error = error_of(row.status, row.words.upper(), 3.0)
        assert (str(error), error.retry_after_s) == (row.detail, 3.0)


def test_an_answer_of_another_shape_is_refused(model):
    async def small(feeds):
        return np.zeros((1, 32, 32, 3), np.uint8)

    with pytest.raises(InferenceError, match=r"made UINT8 \(1, 32, 32, 3\) in 3072 bytes, the man"):
        infer(model, FakeTriton(model, small))


def test_an_answer_without_the_picture_is_refused(model):
    class Silent(FakeTriton):
        async def infer(self, request, timeout_s, headers):
            return type(response_of(np.zeros((1, 1))))()

    with pytest.raises(InferenceError, match=r"made \[\], the manifest says image"):
        infer(model, Silent(model))


def test_priorities_are_told_where_the_model_has_them(model):
    def told(**config):
        fake = FakeTriton(model, **config)
        for turn in (Turn(), Turn("a", "batch")):
            infer(model, fake, turn=turn)
        return [asked.request.parameters["priority"].uint64_param for asked in fake.asked]

    queue = {"allow_timeout_override": True}
    levels = {"priority_levels": 3, "default_priority_level": 1, "default_queue_policy": queue}
    assert told(dynamic_batching=levels) == [1, 2]
    assert told(dynamic_batching=levels | {"priority_levels": 1}) == [1, 1]
    assert told() == [0, 0]


def test_pictures_beyond_the_window_wait_here_and_are_refused_when_triton_goes(model, monkeypatch):
    monkeypatch.setattr(backend_triton, "POLL_S", 0.01)

    async def scenario():
        fake = FakeTriton(model, never)
        async with opened(model, fake, in_flight=2) as backend:
            calls = [backend.infer(feeds_of(model)) for _ in range(5)]
            await asyncio.sleep(0.005)
            before = len(fake.asked), backend.waiting
            fake.down = refusal("UNAVAILABLE", "connection refused")
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            errors = [call.exception() for call in calls if call.done()]
        await asyncio.wait(calls)
        return before, errors, [call.exception() for call in calls]

    before, errors, _ = asyncio.run(scenario())
    assert before == (2, 3)
    assert [type(error) for error in errors] == [NotReadyError] * 3
    assert all(str(error).endswith("connection refused") for error in errors)


def test_a_server_without_the_version_is_not_ready_and_says_so(model):
    fake = FakeTriton(model)
    fake.place = ("tiny", "2")
    assert state(model, fake) == (False, "Triton at triton:8001 does not serve tiny/1")
    fake.down = refusal("UNAVAILABLE", "connection refused")
    assert state(model, fake)[1].endswith("does not serve tiny/1: connection refused")


DIFFERENT = {
    "max_batch_size 4, the manifest says 8": {"max_batch_size": 4},
    "name elsewhere, the manifest says tiny": {"name": "elsewhere"},
    "inputs {}, the manifest says {'input_ids'": {"input": []},
    "outputs {'image': ('TYPE_FP32', [64, 64, 3])}": {
        "output": [{"name": "image", "data_type": "TYPE_FP32", "dims": [64, 64, 3]}]
    },
}


@pytest.mark.parametrize("sentence", DIFFERENT)
def test_a_model_that_is_not_the_manifests_is_not_served(model, sentence):
    ready, why_not = state(model, FakeTriton(model, **DIFFERENT[sentence]))
    assert not ready
    assert f"has tiny/1 with {sentence}" in why_not


def test_a_config_that_lets_no_request_set_its_deadline_is_said(model, caplog):
    queue = model_config_pb2.ModelDynamicBatching()
    assert state(model, FakeTriton(model, dynamic_batching=queue))[0]
    assert "lets no request set its deadline" in caplog.text


def test_it_becomes_ready_when_triton_comes_and_not_when_it_goes(model, monkeypatch, caplog):
    monkeypatch.setattr(backend_triton, "POLL_S", 0.01)
    caplog.set_level(logging.INFO)

    async def scenario():
        fake, states = FakeTriton(model), []
        fake.down = refusal("UNAVAILABLE", "connection refused")
        async with opened(model, fake) as backend:
            for down in (fake.down, None, fake.down):
                fake.down = down
                await asyncio.sleep(0.05)
                states.append(backend.ready)
        return states

    assert asyncio.run(scenario()) == [False, True, False]
    changes = [r.message for r in caplog.records if r.name == "serve.backend_triton"]
    assert len(changes) == 3
    assert changes[1] == "Triton at triton:8001 serves tiny/1"


def test_the_wait_is_foretold_by_what_triton_took(model):
    async def slow(feeds):
        await asyncio.sleep(0.05)
        return np.zeros((1, 64, 64, 3), np.uint8)

    async def scenario():
        async with opened(model, FakeTriton(model, slow)) as backend:
            unknown = backend.wait_s(1)
            await backend.infer(feeds_of(model))
            idle, one, ten = (backend.wait_s(pictures) for pictures in (0, 1, 10))
            return unknown, idle, one, ten

    unknown, idle, one, ten = asyncio.run(scenario())
    assert (unknown, idle) == (0.0, 0.0)
    assert 0.05 <= one < 0.5
    assert ten == pytest.approx(10 * one)


def test_what_is_cancelled_is_cancelled_at_triton(model):
    async def scenario():
        fake = FakeTriton(model, never)
        async with opened(model, fake) as backend:
            call = backend.infer(feeds_of(model))
            await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.wait([call])
            return call.cancelled(), fake.cancelled, backend.wait_s(0)

    assert asyncio.run(scenario()) == (True, 1, 0.0)


def test_closing_fails_what_is_in_work_and_leaves_nothing(model):
    async def scenario():
        fake = FakeTriton(model, never)
        backend = TritonBackend(model, "triton:8001", connect=fake)
        await backend.close()
        await backend.start()
        call = backend.infer(feeds_of(model))
        await asyncio.sleep(0.01)
        await backend.close()
        return call.exception(), backend.ready, backend.why_not, fake.closed

    error, *after = asyncio.run(scenario())
    assert isinstance(error, InferenceError)
    assert after == [False, "the gateway has stopped", True]


def test_a_gateway_starts_without_triton_and_says_why_it_is_not_ready(settings, model):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"

    async def scenario():
        async with client_of(create_app(settings.model_copy(update={"triton": address}))) as client:
            answer = await client.post("/generate", json={"prompt": "a"})
            return await client.get("/livez"), await client.get("/readyz"), answer

    alive, ready, answer = asyncio.run(scenario())
    assert (alive.status_code, ready.status_code, answer.status_code) == (200, 503, 503)
    assert f"Triton at {address} does not serve tiny/1: " in ready.json()["detail"]
    assert answer.headers["retry-after"] == "1"


def test_the_requests_deadline_reaches_triton(settings, model):
    fake = FakeTriton(model)

    async def scenario():
        async with client_of(
            create_app(settings, TritonBackend(model, "triton:8001", connect=fake))
        ) as client:
            headers = {"X-Deadline-Ms": "700"}
            return await client.post("/generate", json={"prompt": "a"}, headers=headers)

    assert asyncio.run(scenario()).status_code == 200
    assert 0 < fake.asked[0].timeout_s <= 0.7


def test_threads_are_ignored_aloud_and_a_missing_extra_is_one_sentence(
    settings, monkeypatch, caplog
):
    async def enter(changed):
        async with client_of(create_app(changed)):
            pass

    monkeypatch.setitem(sys.modules, "serve.backend_triton", None)
    with pytest.raises(SettingsError, match=r"^triton is 'triton:8001', which needs the extra"):
        asyncio.run(enter(settings.model_copy(update={"triton": "triton:8001"})))
    assert "threads is 1 and ignored: Triton runs the model" in caplog.text


def test_a_model_that_is_not_here_is_an_error_before_triton_is_asked(settings, tmp_path):
    async def enter():
        changed = {"triton": "triton:8001", "repository": tmp_path}
        async with client_of(create_app(settings.model_copy(update=changed))):
            pass

    with pytest.raises(RepositoryError, match="holds no model"):
        asyncio.run(enter())
