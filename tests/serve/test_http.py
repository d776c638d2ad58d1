"""The gateway over HTTP, on the real model."""

import asyncio
import base64
import io
import re

import httpx
import pytest
from fake_backend import FakeBackend, ask, client_of
from PIL import Image

from serve.app import create_app
from serve.generate import generate_file
from serve.settings import Settings

RED = {"prompt": "a red circle", "seed": 5}


def on_ort(settings: Settings, *bodies: dict, together: bool = True) -> list[httpx.Response]:
    """Answers of one gateway on ONNX Runtime, asked all at once or one by one."""

    async def talk():
        async with client_of(create_app(settings)) as client:
            calls = [client.post("/generate", json=body) for body in bodies]
            if together:
                return await asyncio.gather(*calls)
            return [await call for call in calls]

    return asyncio.run(talk())


def test_one_picture_comes_as_its_bytes_with_its_origin_in_headers(settings, model):
    (answer,) = on_ort(settings, RED)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "5"
    assert answer.headers["x-model"] == "tiny/1"
    assert answer.headers["x-digest"] == model.manifest.digest
    timing = r"queue;dur=[\d.]+, tokenize;dur=[\d.]+, infer;dur=[\d.]+, encode;dur=[\d.]+"
    assert re.fullmatch(timing + r", total;dur=[\d.]+", answer.headers["server-timing"])
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.size, image.text["prompt"]) == ("PNG", (64, 64), "a red circle")


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_format_is_the_one_asked_for(settings, format):
    (answer,) = on_ort(settings, {**RED, "format": format})
    assert answer.headers["content-type"] == f"image/{format}"
    assert Image.open(io.BytesIO(answer.content)).format == format.upper()


def test_several_pictures_are_those_of_the_following_seeds(settings):
    several, *single = on_ort(
        settings, {**RED, "num_images": 3}, *({**RED, "seed": seed} for seed in (5, 6, 7))
    )
    images = several.json()["images"]
    assert [image["seed"] for image in images] == [5, 6, 7]
    assert [base64.b64decode(image["image"]) for image in images] == [one.content for one in single]
    assert several.json()["media_type"] == "image/png"


def test_one_picture_comes_as_json_if_asked_for(settings):
    answer = ask(settings, RED, headers={"Accept": "text/html, application/json;q=0.9"})
    assert [image["seed"] for image in answer.json()["images"]] == [5]
    declined = ask(settings, RED, headers={"Accept": "*/*, application/json; q=0"})
    assert declined.headers["content-type"] == "image/png"


def test_a_seed_that_is_drawn_is_told_and_makes_the_same_picture_again(settings):
    first, second = on_ort(settings, {"prompt": "a red circle"}, {"prompt": "a red circle"})
    assert first.headers["x-seed"] != second.headers["x-seed"]
    (again,) = on_ort(settings, {**RED, "seed": int(first.headers["x-seed"])})
    assert again.content == first.content


def test_a_picture_is_the_same_alone_in_company_and_after_a_restart(settings):
    bodies = [
        {**RED, "seed": seed, "prompt": p} for p in ("a red circle", "blue") for seed in (1, 2)
    ]
    alone = [one.content for one in on_ort(settings, *bodies, together=False)]
    crowd = [one.content for one in on_ort(settings, *bodies[::-1], *bodies * 2)]
    assert crowd == alone[::-1] + alone * 2


@pytest.mark.parametrize(("suffix", "quality"), [("png", None), ("jpg", 80), ("webp", None)])
def test_the_command_line_writes_the_gateways_bytes(settings, tmp_path, suffix, quality):
    out = tmp_path / f"a.{suffix}"
    picture = generate_file(settings, "a red circle", 5, out, size="64x64", quality=quality)
    (answer,) = on_ort(settings, {**RED, "format": picture.format, "quality": quality})
    assert out.read_bytes() == picture.data == answer.content


def test_the_probes_follow_the_gateways_life(settings):
    async def states():
        app = create_app(settings, FakeBackend())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            found = [[(await client.get(path)) for path in ("/livez", "/readyz")]]
            async with app.router.lifespan_context(app):
                found.append([(await client.get(path)) for path in ("/livez", "/readyz")])
                app.state.gateway.drain.begun = True
                found.append([(await client.get(path)) for path in ("/livez", "/readyz")])
                found.append([await client.post("/generate", json=RED)])
        return found

    before, during, draining, refused = asyncio.run(states())
    assert [[one.status_code for one in pair] for pair in (before, during, draining)] == [
        [200, 503],
        [200, 200],
        [200, 503],
    ]
    assert before[1].json()["detail"] == "the model is not loaded"
    assert "draining" in draining[1].json()["detail"]
    assert (refused[0].status_code, refused[0].headers["retry-after"]) == (503, "1")


def test_a_back_end_that_is_not_ready_makes_the_gateway_not_ready(settings):
    async def talk():
        backend = FakeBackend()
        async with client_of(create_app(settings, backend)) as client:
            await backend.close()
            return await client.get("/readyz")

    assert asyncio.run(talk()).status_code == 503
