"""A client that goes away takes its pictures with it."""

import asyncio
import json

import pytest
from fake_backend import FakeBackend, client_of

from serve.app import create_app


async def never(feeds):
    await asyncio.Event().wait()


async def post_and_leave(app, backend: FakeBackend, path: str, fields: dict) -> list[dict]:
    """One POST over bare ASGI; the client is gone once its pictures wait in the back end."""
    body = json.dumps({"prompt": "a red circle"} | fields).encode()
    sent: list[dict] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        while len(backend.pending) < 3:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await asyncio.wait_for(app(scope, receive, send), 5)
    return sent


@pytest.mark.parametrize(
    ("path", "fields"), [("/generate", {"num_images": 3}), ("/v1/images/generations", {"n": 3})]
)
def test_pictures_of_a_client_that_went_away_leave_the_queue(settings, path, fields):
    async def scenario():
        backend = FakeBackend(never)
        app = create_app(settings, backend)
        async with app.router.lifespan_context(app):
            sent = await post_and_leave(app, backend, path, fields)
            await asyncio.sleep(0.01)
            return sent[0]["status"], len(backend.pending), app.state.gateway.repository.idle

    assert asyncio.run(scenario()) == (499, 0, True)


def test_pictures_still_in_work_when_the_gateway_stops_are_refused(settings):
    async def scenario():
        backend = FakeBackend(never)
        app = create_app(settings, backend)
        async with client_of(app) as client:
            post = asyncio.create_task(client.post("/generate", json={"prompt": "a red circle"}))
            while not backend.pending:
                await asyncio.sleep(0.01)
            app.state.gateway.drain.end()
            return await post

    answer = asyncio.run(scenario())
    assert answer.status_code == 503
    assert answer.json()["detail"] == "the gateway stops before this could be answered"
