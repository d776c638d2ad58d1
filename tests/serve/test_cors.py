"""Pages of other origins: only where the settings name them, and then errors too."""

import asyncio

import httpx
import pytest
from fake_backend import FakeBackend, client_of

from serve.app import create_app
from serve.errors import NotReadyError

RED = {"prompt": "a red circle", "seed": 5}
HERE, ELSEWHERE = "https://a.example", "https://b.example"
READABLE = {"etag", "retry-after", "server-timing", "x-digest", "x-model", "x-request-id", "x-seed"}


async def buggy(feeds):
    raise ZeroDivisionError("a secret of the house")


async def busy(feeds):
    raise NotReadyError("later", 3.0)


def asked(settings, origins, *requests, function=None) -> list[httpx.Response]:
    """Answers of a gateway with these `cors_origins` to (method, path, options)."""
    backend = FakeBackend() if function is None else FakeBackend(function)

    async def run():
        app = create_app(settings.model_copy(update={"cors_origins": origins}), backend)
        async with client_of(app) as client:
            return [
                await client.request(method, path, **options) for method, path, options in requests
            ]

    return asyncio.run(run())


def preflight(origin, *names):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    if names:
        headers["Access-Control-Request-Headers"] = ", ".join(names)
    return ("OPTIONS", "/generate", {"headers": headers})


def generate(origin, **options):
    return ("POST", "/generate", {"json": RED, "headers": {"Origin": origin}} | options)


def cors_of(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if "access-control" in name}


def test_without_origins_no_answer_says_anything_of_them(settings):
    before, answer = asked(settings, (), preflight(HERE), generate(HERE))
    assert (before.status_code, answer.status_code) == (405, 200)
    assert cors_of(before) == cors_of(answer) == {}


def test_a_preflight_of_a_listed_origin_allows_what_the_api_reads(settings):
    names = ("authorization", "content-type", "x-deadline-ms", "x-priority", "x-request-id")
    names += ("if-none-match", "traceparent")
    (answer,) = asked(settings, (HERE,), preflight(HERE, *names))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == HERE
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {*names} <= {*allowed}
    assert answer.headers["x-request-id"]


def test_a_preflight_for_a_header_that_the_api_does_not_read_is_refused(settings):
    (answer,) = asked(settings, (HERE,), preflight(HERE, "x-other"))
    assert answer.status_code == 400


def test_an_origin_that_is_not_listed_gets_no_leave(settings):
    before, answer = asked(settings, (HERE,), preflight(ELSEWHERE), generate(ELSEWHERE))
    assert before.status_code == 400
    assert "access-control-allow-origin" not in {**before.headers, **answer.headers}


def test_a_listed_origin_may_read_the_headers_of_a_picture(settings):
    (answer,) = asked(settings, (HERE, "https://c.example"), generate(HERE))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == HERE
    assert "Origin" in answer.headers["vary"]
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert {*exposed} >= READABLE
    assert "access-control-allow-credentials" not in answer.headers


def test_a_star_stands_for_every_origin(settings):
    before, answer = asked(settings, ("*",), preflight(ELSEWHERE), generate(ELSEWHERE))
    assert before.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("function", "request_", "status"),
    [
        (None, generate(HERE, json={}), 422),
        (None, ("GET", "/nowhere", {"headers": {"Origin": HERE}}), 404),
        (None, generate(HERE, headers={"Origin": HERE, "X-Request-ID": "a b"}), 422),
        (busy, generate(HERE), 503),
        (buggy, generate(HERE), 500),
    ],
)
def test_errors_too_can_be_read(settings, function, request_, status):
    (answer,) = asked(settings, (HERE,), request_, function=function)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == HERE
    assert answer.json()["status"] == status
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
