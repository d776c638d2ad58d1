"""W3C Trace Context, level 1: what is taken, what is ignored, what goes on."""

import asyncio

import pytest
from fake_backend import FakeBackend, ask, grey
from starlette.datastructures import Headers

from serve import trace_context
from serve.trace_context import TraceContext, read

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def given(*headers: tuple[str, str]) -> TraceContext | None:
    return read(Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in headers]))


def test_a_valid_parent_is_read_and_passed_on():
    found = given(("traceparent", PARENT), ("tracestate", "rojo=00f067aa0ba902b7,congo=t61"))
    assert found == TraceContext(TRACE, SPAN, "01", "rojo=00f067aa0ba902b7,congo=t61")
    assert found.headers() == {
        "traceparent": PARENT,
        "tracestate": "rojo=00f067aa0ba902b7,congo=t61",
    }


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "ff" + PARENT[2:],
        PARENT + "-extra",
        PARENT + "0",
        PARENT.upper(),
        PARENT[:-1],
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0g",
        PARENT.replace("-", "_"),
        f"{PARENT},{PARENT}",
    ],
)
def test_an_invalid_parent_is_ignored_with_its_state(bad):
    assert given(("traceparent", bad), ("tracestate", "a=1")) is None


def test_two_parents_are_none_and_a_state_alone_is_nothing():
    assert given(("traceparent", PARENT), ("traceparent", PARENT)) is None
    assert given(("tracestate", "a=1")) is None


@pytest.mark.parametrize("version", ["01", "cc", "fe"])
def test_a_later_version_is_read_as_far_as_it_is_known(version):
    found = given(("traceparent", f"{version}-{TRACE}-{SPAN}-03-what-is-new"))
    assert found is not None
    assert found.headers() == {"traceparent": f"00-{TRACE}-{SPAN}-03"}
    assert given(("traceparent", f"{version}-{TRACE}-{SPAN}-03what")) is None


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        (["a=1", "b=2"], "a=1,b=2"),
        (["a=1 ,\t b=2,", ""], "a=1,b=2"),
        (["tenant-1@vendor=x y", "0a@v=!"], "tenant-1@vendor=x y,0a@v=!"),
        (["a=1,a=2"], ""),
        (["A=1"], ""),
        (["a"], ""),
        (["a=é"], ""),
        (["a=" + "x" * 257], ""),
        (["a=" + "x" * 256], "a=" + "x" * 256),
        ([",".join(f"k{i}=1" for i in range(32))], ",".join(f"k{i}=1" for i in range(32))),
        ([",".join(f"k{i}=1" for i in range(33))], ""),
    ],
)
def test_a_state_is_passed_on_whole_or_not_at_all(states, kept):
    found = given(("traceparent", PARENT), *(("tracestate", state) for state in states))
    assert found is not None
    assert found.state == kept


def seen_by_the_back_end(settings, headers) -> dict[str, str]:
    """What a back end would send on, of a request with these headers."""
    seen: list[dict[str, str]] = []

    async def look(feeds):
        seen.append(trace_context.current())
        return await grey(feeds)

    assert ask(settings, {"prompt": "a"}, FakeBackend(look), headers=headers).status_code == 200
    return seen[0]


def test_what_the_back_end_sends_belongs_to_the_requests_trace(settings):
    state = {"tracestate": "a=1"}
    assert seen_by_the_back_end(settings, {"traceparent": PARENT} | state) == {
        "traceparent": PARENT,
        "tracestate": "a=1",
    }
    assert seen_by_the_back_end(settings, state) == {}
    assert seen_by_the_back_end(settings, {"traceparent": "00-zz"} | state) == {}


def test_a_context_ends_with_its_task():
    async def request(context):
        trace_context.enter(context)
        await asyncio.sleep(0)
        return trace_context.trace_id()

    async def both():
        contexts = (TraceContext(TRACE, SPAN, "01"), None)
        return await asyncio.gather(*(asyncio.create_task(request(one)) for one in contexts))

    assert asyncio.run(both()) == [TRACE, None]
    assert trace_context.current() == {}
