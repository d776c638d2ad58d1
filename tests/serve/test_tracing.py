"""Traces, as a collector receives them."""

import asyncio
import re
import socket
import sys
import time

import pytest
from collector import collector, values
from fake_backend import FakeBackend, ask, client_of, grey
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serve import trace_context
from serve.app import create_app
from serve.errors import NotReadyError, SettingsError
from serve.layers import open_tracing
from serve.tracing import STAGES

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1"}
RED = {"prompt": "a red circle", "seed": 5}


@pytest.fixture
def collected(monkeypatch):
    """A collector that the gateway sends its traces to."""
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


@pytest.fixture
def traced(settings):
    """The settings, with traces."""
    return settings.model_copy(update={"tracing": True})


async def failing(feeds):
    raise ZeroDivisionError("a secret of the house")


async def busy(feeds):
    raise NotReadyError("later", 3.0)


def test_a_request_is_a_servers_span_below_its_callers(traced, collected):
    answer = ask(traced, RED, headers=PARENT | {"X-Request-ID": "job-7"})
    assert answer.status_code == 200
    span = collected.named("POST /generate")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    assert (span.kind, span.trace_state) == (Span.SPAN_KIND_SERVER, "a=1")
    found = values(span.attributes)
    assert found["http.route"] == "/generate"
    assert (found["http.request.method"], found["http.response.status_code"]) == ("POST", 200)
    assert found["singlepass.request_id"] == "job-7"
    assert "red circle" not in str(span)
    assert collected.resource["service.name"] == "singlepass"


def test_the_stages_lie_below_it_in_their_order_and_inside_its_time(traced, collected):
    async def slow(feeds):
        await asyncio.sleep(0.05)
        return await grey(feeds)

    ask(traced, RED, FakeBackend(slow))
    whole, stages = collected.named("POST /generate"), [collected.named(one) for one in STAGES]
    assert {one.parent_span_id for one in stages} == {whole.span_id}
    times = [whole.start_time_unix_nano]
    for one in stages:
        times += [one.start_time_unix_nano, one.end_time_unix_nano]
    assert sorted(times) == times
    assert times[-1] <= whole.end_time_unix_nano
    assert whole.end_time_unix_nano - whole.start_time_unix_nano > 0.05e9
    assert abs(whole.end_time_unix_nano - time.time_ns()) < 60e9


def test_what_the_back_end_sends_is_below_the_servers_span(traced, collected):
    seen = []

    async def look(feeds):
        seen.append(trace_context.current())
        return await grey(feeds)

    ask(traced, RED, FakeBackend(look), headers=PARENT)
    span = collected.named("POST /generate")
    assert seen == [{"traceparent": f"00-{TRACE}-{span.span_id.hex()}-01", "tracestate": "a=1"}]


def test_a_trace_begins_here_where_none_came(traced, collected):
    ask(traced, RED, headers={"traceparent": "00-zz"})
    span = collected.named("POST /generate")
    assert span.parent_span_id == b""
    assert int.from_bytes(span.trace_id, "big") != 0


def test_a_caller_that_is_not_sampled_is_not_sent(traced, collected):
    ask(traced, RED, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    assert collected.spans == []


def test_a_bug_is_recorded_in_the_span_and_a_refusal_named(traced, collected):
    async def both():
        for function in (failing, busy):
            async with client_of(create_app(traced, FakeBackend(function))) as client:
                await client.post("/generate", json=RED)

    asyncio.run(both())
    bug, refusal = collected.spans
    (event,) = bug.events
    assert values(event.attributes)["exception.type"] == "ZeroDivisionError"
    assert bug.status.code == refusal.status.code == Status.STATUS_CODE_ERROR
    assert values(bug.attributes)["error.type"] == "internal-error"
    assert values(refusal.attributes)["error.type"] == "not-ready"
    assert not refusal.events


def test_a_callers_mistake_is_no_error_of_the_server(traced, collected):
    ask(traced, {})
    span = collected.named("POST /generate")
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert values(span.attributes)["error.type"] == "invalid-parameters"


def test_opentelemetrys_variables_are_obeyed(traced, collected, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=abc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    ask(traced, RED)
    assert collected.resource["service.name"] == "pictures"
    (headers,) = collected.headers
    assert headers["api-key"] == "abc"
    assert headers["path"] == "/v1/traces"


def test_log_lines_name_the_trace(traced, collected, caplog):
    ids = []

    async def look(feeds):
        ids.append(trace_context.trace_id())
        return await grey(feeds)

    ask(traced, RED, FakeBackend(look))
    assert re.fullmatch("[0-9a-f]{32}", ids[0])
    assert ids == [collected.named("POST /generate").trace_id.hex()]


def test_a_collector_that_is_away_holds_up_neither_requests_nor_the_end(traced, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
        monkeypatch.setattr("serve.tracing.FLUSH_S", 0.2)
        start = time.perf_counter()
        assert ask(traced, RED).status_code == 200
        assert time.perf_counter() - start < 5


def test_without_the_extra_the_setting_is_refused_by_name(traced, monkeypatch):
    monkeypatch.delitem(sys.modules, "serve.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r"needs the extra singlepass\[tracing\]"):
        open_tracing(traced)


def test_without_the_setting_nothing_of_opentelemetry_is_used(settings):
    assert open_tracing(settings) is None
