"""The API under /v1, as the official `openai` client sees it."""

import asyncio
import base64
import io
import shutil
import time

import httpx
import openai
import pytest
from fake_backend import FakeBackend, client_of
from PIL import Image
from tiny_repository import write_version

from serve.app import create_app
from serve.errors import InferenceError
from serve.settings import Settings

RED = "a red circle"


def with_client(settings: Settings, call, backend=None):
    """The result of `call(client)` with the official client on a gateway; no retries."""

    async def run():
        async with client_of(create_app(settings, backend or FakeBackend())) as http:
            client = openai.AsyncOpenAI(
                base_url="http://gateway/v1", api_key="unused", http_client=http, max_retries=0
            )
            return await call(client)

    return asyncio.run(run())


def refused(settings, kind, fields, backend=None, **options):
    """The client's exception for an images request."""
    with pytest.raises(kind) as caught:
        with_client(
            settings, lambda c: c.images.generate(**{"prompt": RED} | fields, **options), backend
        )
    return caught.value


def test_pictures_are_those_of_generate(settings):
    async def run():
        async with client_of(create_app(settings)) as http:
            client = openai.AsyncOpenAI(
                base_url="http://gateway/v1", api_key="unused", http_client=http
            )
            ours = await http.post("/generate", json={"prompt": RED, "seed": 5, "num_images": 2})
            theirs = await client.images.generate(prompt=RED, n=2, extra_body={"seed": 5})
            return ours.json()["images"], theirs

    ours, theirs = asyncio.run(run())
    assert [image.b64_json for image in theirs.data] == [image["image"] for image in ours]
    assert [image.seed for image in theirs.data] == [5, 6]
    assert (theirs.output_format, theirs.size, theirs.background) == ("png", "64x64", "opaque")
    assert abs(theirs.created - time.time()) < 60


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_output_format_is_the_pictures(settings, format):
    made = with_client(settings, lambda c: c.images.generate(prompt=RED, output_format=format))
    image = Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json)))
    assert (image.format, made.output_format) == (format.upper(), format)


def test_output_compression_is_the_quality(settings):
    async def sizes(client):
        return [
            len(
                (
                    await client.images.generate(
                        prompt=RED, output_format="jpeg", output_compression=q
                    )
                )
                .data[0]
                .b64_json
            )
            for q in (1, 100)
        ]

    async def noisy(feeds):
        return (feeds["noise"].repeat(8, 1).repeat(8, 2)[:3].transpose(1, 2, 0) * 60).astype("u1")

    small, large = with_client(settings, sizes, FakeBackend(noisy))
    assert small < large / 2


def test_what_says_what_happens_anyway_is_accepted(settings):
    fields = {
        "model": "tiny/1",
        "n": 1,
        "size": "auto",
        "response_format": "b64_json",
        "quality": "auto",
        "background": "opaque",
        "stream": False,
        "user": "somebody",
    }
    made = with_client(settings, lambda c: c.images.generate(prompt=RED, **fields))
    assert len(made.data) == 1
    nothing = dict.fromkeys(["model", "n", "size", "response_format", "seed", "user"])
    again = with_client(settings, lambda c: c.images.generate(prompt=RED, extra_body=nothing))
    assert len(again.data) == 1


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"response_format": "url"}, "response_format", "is 'url', allowed is b64_json: the"),
        ({"n": 0}, "n", "is 0: input should be greater than or equal to 1"),
        ({"n": 9}, "n", "is 9, allowed is 1 to 8"),
        ({"size": "1024x1024"}, "size", "is 1024x1024, tiny/1 has sizes: 64x64"),
        ({"size": "large"}, "size", "is 'large', allowed is WIDTHxHEIGHT"),
        ({"output_format": "gif"}, "output_format", "is 'gif': input should be"),
        ({"output_compression": 50}, "output_compression", "applies to jpeg and webp"),
        ({"output_compression": 0}, "output_compression", "is 0: input should be"),
        ({"quality": "hd"}, "quality", "is 'hd': input should be 'auto'"),
        ({"background": "transparent"}, "background", "is 'transparent': input should be"),
        ({"style": "vivid"}, "style", "is not supported: the student has one style"),
        ({"moderation": "low"}, "moderation", "is not supported: the gateway does not"),
        ({"extra_body": {"stream": True}}, "stream", "is True: input should be False"),
        ({"extra_body": {"seed": -1}}, "seed", "is -1: input should be"),
        ({"extra_body": {"steps": 1}}, "steps", "is not supported: every picture takes one"),
        ({"extra_body": {"colour": 1}}, "colour", "is not supported: the parameters are prompt, "),
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": "a " * 100}, "prompt", "is 102 tokens long with start and end"),
    ],
)
def test_a_bad_parameter_is_a_bad_request_that_names_it(settings, fields, param, sentence):
    error = refused(settings, openai.BadRequestError, fields)
    assert (error.param, error.code) == (param, "invalid_parameters")
    assert error.type == "invalid_request_error"
    assert error.body["message"].startswith(f"{param}: {sentence}")


@pytest.mark.parametrize("name", ["dall-e-3", "tiny/2", ""])
def test_a_model_that_is_not_served_is_not_found(settings, name):
    error = refused(settings, openai.NotFoundError, {"model": name})
    assert (error.param, error.code) == ("model", "model_not_found")
    assert error.body["message"] == f"model: is {name!r}, served is tiny, as tiny/1"


def test_models_are_listed_and_found_by_name_and_version(settings, model):
    async def look(client):
        listed = [one async for one in client.models.list()]
        return listed, [await client.models.retrieve(name) for name in ("tiny", "tiny/1")]

    (listed,), found = with_client(settings, look)
    assert (listed.id, listed.object, listed.owned_by) == ("tiny", "model", "singlepass")
    assert [one.id for one in found] == ["tiny", "tiny/1"]
    assert found[0].digest == model.manifest.digest
    assert found[0].sizes == ["64x64"]
    assert found[0].created == int((model.folder / "manifest.json").stat().st_mtime)


def test_a_model_that_is_not_there_is_not_found(settings):
    with pytest.raises(openai.NotFoundError, match="served is tiny, as tiny/1"):
        with_client(settings, lambda client: client.models.retrieve("gpt-image-1"))


def test_a_model_whose_folder_is_gone_is_still_described(settings, tmp_path):
    folder = write_version(tmp_path)

    async def run():
        app = create_app(settings.model_copy(update={"repository": tmp_path}), FakeBackend())
        async with client_of(app) as http:
            there = (await http.get("/v1/models")).json()
            shutil.rmtree(folder)
            return there, (await http.get("/v1/models")).json()

    there, gone = (listed["data"][0] for listed in asyncio.run(run()))
    assert abs(there["created"] - time.time()) < 60
    assert gone == there | {"created": 0}
    assert (gone["default"], gone["max_images"]) == (True, 8)


async def broken(feeds):
    raise InferenceError("the model failed on this picture; the log says why")


async def buggy(feeds):
    raise ZeroDivisionError("a secret of the house")


def test_overload_is_a_rate_limit_with_the_time_to_wait(settings):
    busy = FakeBackend(wait_s=9.5, each_s=0.5)
    headers = {"X-Deadline-Ms": "3000"}
    error = refused(settings, openai.RateLimitError, {}, busy, extra_headers=headers)
    assert (error.type, error.code) == ("rate_limit_error", "deadline_cannot_be_met")
    assert error.response.headers["retry-after"] == "7"


def test_faults_of_the_server_are_said_without_their_trace(settings):
    failed = refused(settings, openai.InternalServerError, {}, FakeBackend(broken))
    assert (failed.status_code, failed.type, failed.code) == (
        500,
        "server_error",
        "inference_failed",
    )
    bug = refused(settings, openai.InternalServerError, {}, FakeBackend(buggy))
    assert (bug.code, "secret" in str(bug)) == ("internal_error", False)


def test_a_gateway_that_is_not_ready_says_so(settings):
    async def run():
        transport = httpx.ASGITransport(create_app(settings, FakeBackend()))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            client = openai.AsyncOpenAI(
                base_url="http://gateway/v1", api_key="unused", http_client=http, max_retries=0
            )
            await client.models.list()

    with pytest.raises(openai.InternalServerError) as caught:
        asyncio.run(run())
    assert (caught.value.status_code, caught.value.code) == (503, "not_ready")
    assert caught.value.response.headers["retry-after"] == "1"


def test_the_clients_request_id_is_ours(settings):
    made = with_client(
        settings,
        lambda c: c.images.generate(prompt=RED, extra_headers={"X-Request-ID": "mine-1"}),
    )
    assert made._request_id == "mine-1"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/images/generations", b"", 405, "method_not_allowed"),
        ("GET", "/v1/files", b"", 404, "not_found"),
        ("POST", "/v1/images/generations", b"[1]", 400, "malformed_body"),
        ("POST", "/v1/images/generations", b" " * 70_000, 413, "body_too_large"),
    ],
)
def test_other_refusals_have_the_same_shape(settings, method, path, body, status, code):
    async def run():
        async with client_of(create_app(settings, FakeBackend())) as http:
            headers = {"Content-Type": "application/json"}
            return await http.request(method, path, content=body, headers=headers)

    answer = asyncio.run(run())
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    error = answer.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert (error["code"], error["param"], error["type"]) == (code, None, "invalid_request_error")
