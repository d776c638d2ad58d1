"""Every answer carries the request's id and the time it took."""

import asyncio
import re

import httpx
import pytest
from fake_backend import FakeBackend, ask, client_of

from serve.app import create_app

RED = {"prompt": "a red circle", "seed": 5}


async def buggy(feeds):
    raise ZeroDivisionError("a secret of the house")


def answers(settings, headers):
    """One answer of each kind: pictures, spared, lists, probes, refusals and a bug."""

    async def run():
        async with client_of(create_app(settings, FakeBackend())) as client:
            spared = headers | {"If-None-Match": "*"}
            found = [
                await client.post("/generate", json=RED, headers=headers),
                await client.post("/generate", json=RED, headers=spared),
                await client.post("/generate", json={}, headers=headers),
                await client.post("/v1/images/generations", json=RED, headers=headers),
            ]
            paths = ("/v1/models", "/v1/nowhere", "/livez", "/readyz", "/openapi.json", "/no")
            found += [await client.get(path, headers=headers) for path in paths]
            found.append(await client.head("/livez", headers=headers))
        return found

    return [*asyncio.run(run()), ask(settings, RED, FakeBackend(buggy), headers=headers)]


def test_the_id_that_came_in_goes_out_with_every_answer(settings):
    found = answers(settings, {"X-Request-ID": "job:7/a+b=c@host_1.2-3"})
    statuses = [one.status_code for one in found]
    assert statuses == [200, 304, 422, 200, 200, 404, 200, 200, 200, 404, 200, 500]
    assert {one.headers["x-request-id"] for one in found} == {"job:7/a+b=c@host_1.2-3"}
    problems = [one for one in found if one.headers.get("content-type", "").endswith("m+json")]
    assert {one.json()["request_id"] for one in problems} == {"job:7/a+b=c@host_1.2-3"}
    assert len(problems) == 3


def test_every_answer_says_how_long_it_took_and_a_picture_where(settings):
    pictures, *others = answers(settings, {})
    assert re.search(r"^queue;dur=.*, total;dur=[\d.]+$", pictures.headers["server-timing"])
    assert "infer;dur=" in others[2].headers["server-timing"]
    assert all(re.search(r"total;dur=[\d.]+$", one.headers["server-timing"]) for one in others)


def test_an_id_is_made_where_none_came(settings):
    ids = [one.headers["x-request-id"] for one in answers(settings, {})]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


@pytest.mark.parametrize("bad", ["", "a b", "a" * 129, "é", 'a"b', "<script>"])
def test_an_id_that_is_none_is_refused_by_name(settings, bad):
    answer = ask(settings, RED, headers={"X-Request-ID": bad.encode("latin-1")})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["name"] == "X-Request-ID"
    assert "allowed are 1 to 128 letters" in answer.json()["detail"]
    assert answer.headers["x-request-id"] == answer.json()["request_id"] != bad


def test_a_bad_id_under_v1_is_refused_in_openais_shape(settings):
    async def run():
        transport = httpx.ASGITransport(create_app(settings, FakeBackend()))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.get("/v1/models", headers={"X-Request-ID": "a b"})

    answer = asyncio.run(run())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Request-ID")
