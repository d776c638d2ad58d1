"""One line a request when it is over, and bugs that are answered and logged."""

import asyncio
import logging

import pytest
from fake_backend import FakeBackend, ask, client_of
from starlette.requests import Request

from serve.app import create_app
from serve.guard import Guard
from serve.layers import layers
from serve.metrics import Metrics
from serve.stamping import Stamping
from serve.stamps import note, stamp_of

RED = {"prompt": "a red circle", "seed": 5}


async def buggy(feeds):
    raise ZeroDivisionError("a secret of the house")


def lines(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "serve.access_log"]


def asked(settings, caplog, *requests, level=logging.INFO) -> list[logging.LogRecord]:
    """The lines that requests of (method, path, options) leave."""

    async def run():
        async with client_of(create_app(settings, FakeBackend())) as client:
            for method, path, options in requests:
                await client.request(method, path, **options)

    with caplog.at_level(level):
        asyncio.run(run())
    return lines(caplog)


def test_a_request_leaves_one_line_with_what_was_answered(settings, caplog):
    (line,) = asked(settings, caplog, ("POST", "/generate?key=secret", {"json": RED}))
    facts = line.facts
    assert line.getMessage() == "POST /generate 200"
    assert (facts["method"], facts["route"], facts["path"]) == ("POST", "/generate", "/generate")
    assert (facts["status"], facts["client"]) == (200, "127.0.0.1")
    assert facts["bytes"] > 100
    assert 0 < facts["duration_ms"] < 10_000
    assert "secret" not in str(facts)


def test_a_refusal_leaves_a_line_with_its_reason(settings, caplog):
    bad = ("GET", "/v1/models/no", {"headers": {"X-Request-ID": "a b"}})
    first, second = asked(settings, caplog, ("GET", "/v1/models/no", {}), bad)
    assert (first.facts["route"], first.facts["problem"]) == ("/v1/models/{id}", "model-not-found")
    assert (second.facts["status"], second.facts["problem"]) == (400, "invalid-parameters")


def test_probes_and_scrapes_leave_a_line_only_when_debugging(settings, caplog):
    probes = [("GET", path, {}) for path in ("/livez", "/readyz", "/metrics")]
    assert asked(settings, caplog, *probes) == []
    assert [line.levelname for line in asked(settings, caplog, *probes, level=logging.DEBUG)] == [
        "DEBUG"
    ] * 3


@pytest.fixture
def noting():
    """An application that notes facts and fails on request, inside the gateway's layers."""

    async def app(scope, receive, send):
        request = Request(scope)
        note(request, caller="anne", model="tiny/1", prompt="a secret", queue_s=0.0123456)
        note(scope, pictures=2)
        if scope["path"] == "/leave":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/half":
            raise ZeroDivisionError("in the middle")
        await send({"type": "http.response.body", "body": b"12345"})

    return app


def through(app, settings, path, metrics=None) -> None:
    """One request through the layers, to nobody."""
    for layer in reversed(layers(settings, metrics or Metrics("1"), None)):
        app = layer.cls(app, *layer.args, **layer.kwargs)

    async def send(message):
        pass

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "client": None}
    asyncio.run(app(scope, None, send))


@pytest.mark.parametrize("log_prompts", [True, False])
def test_what_the_routes_note_is_in_the_line_and_the_prompt_if_wanted(
    noting, settings, caplog, log_prompts
):
    with caplog.at_level(logging.INFO):
        through(noting, settings.model_copy(update={"log_prompts": log_prompts}), "/")
    (line,) = lines(caplog)
    wanted = {"caller": "anne", "model": "tiny/1", "pictures": 2, "queue_ms": 12.346, "bytes": 5}
    assert wanted.items() <= line.facts.items()
    assert line.facts.get("prompt") == ("a secret" if log_prompts else None)
    assert line.facts["client"] is None


def test_no_line_is_made_that_nobody_reads(noting, settings, caplog):
    with caplog.at_level(logging.WARNING):
        through(noting, settings, "/")
    assert lines(caplog) == []


def test_a_request_that_got_no_answer_is_counted_as_left(noting, settings, caplog):
    with caplog.at_level(logging.INFO):
        through(noting, settings, "/leave")
    assert [line.facts["status"] for line in lines(caplog)] == [499]


def test_a_bug_after_the_answer_has_begun_reaches_the_server(noting, settings, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(ZeroDivisionError):
        through(noting, settings, "/half")
    assert [line.facts["status"] for line in lines(caplog)] == [200]


def test_a_bug_is_answered_counted_and_logged_once_with_its_trace(settings, caplog):
    with caplog.at_level(logging.INFO):
        answer = ask(settings, RED, FakeBackend(buggy), headers={"X-Request-ID": "job-7"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "job-7")
    (trace,) = [record for record in caplog.records if record.exc_info]
    assert (trace.name, trace.exc_info[0]) == ("serve.guard", ZeroDivisionError)
    (line,) = lines(caplog)
    assert (line.facts["status"], line.facts["problem"]) == (500, "internal-error")


def test_what_is_no_http_passes_through():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(Stamping(Guard(app), Metrics("1"))({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_facts_need_a_request_that_came_through_the_middleware():
    with pytest.raises(AssertionError, match="carries <class 'str'>"):
        stamp_of({"state": {"stamp": "none"}})
