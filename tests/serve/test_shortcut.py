"""The short way to POST /generate answers as FastAPI's own would."""

import asyncio

import pytest
from fake_backend import FakeBackend, client_of

from serve.app import create_app
from serve.shortcut import Shortcut

ASKED = {"prompt": "a red circle", "seed": 5, "format": "raw"}
TIMES = {"server-timing", "x-request-id"}


def answers(settings, ask, direct: bool):
    async def run():
        app = create_app(settings, FakeBackend())
        if not direct:
            app.user_middleware = [one for one in app.user_middleware if one.cls is not Shortcut]
        async with client_of(app) as client:
            answer = await ask(client)
            metrics = (await client.get("/metrics")).text
            return answer, [line for line in metrics.splitlines() if "http_requests_total{" in line]

    return asyncio.run(run())


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.post("/generate", json=ASKED),
        lambda client: client.post("/generate", json={"prompt": 3}),
        lambda client: client.post("/generate", content=b"{", headers={"X-Request-ID": "me"}),
        lambda client: client.post("/generate?a=b", json=ASKED),
        lambda client: client.get("/generate"),
        lambda client: client.post("/generate/", json=ASKED),
        lambda client: client.post("/generated", json=ASKED),
    ],
)
def test_the_answer_and_what_is_counted_are_the_same_either_way(settings, ask):
    (short, counted), (long, counted_too) = (answers(settings, ask, way) for way in (True, False))
    assert short.status_code == long.status_code
    assert {k: v for k, v in short.headers.items() if k not in TIMES} == {
        k: v for k, v in long.headers.items() if k not in TIMES
    }
    drop_id = {"request_id": None}
    if "json" in short.headers["content-type"]:
        assert short.json() | drop_id == long.json() | drop_id
    else:
        assert short.content == long.content
    assert counted == counted_too
