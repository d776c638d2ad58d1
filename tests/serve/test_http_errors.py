"""What is wrong with a request is said in one sentence, as an RFC 9457 problem."""

import asyncio
import json

import httpx
import pytest
from fake_backend import FakeBackend, ask, client_of

from serve.app import create_app
from serve.errors import InferenceError, ServeError
from serve.problems import STATUSES
from serve.settings import Settings

RED = {"prompt": "a red circle"}


def problem(answer: httpx.Response, status: int, slug: str) -> str:
    """The detail of a problem, after a look at all the rest of it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert content["status"] == status
    assert content["type"] == f"urn:singlepass:problem:{slug}"
    assert content["title"] == slug.replace("-", " ").capitalize()
    return content["detail"]


@pytest.mark.parametrize(
    ("fields", "name", "sentence"),
    [
        ({"negative_prompt": "blue"}, "negative_prompt", "is not supported: a one-step student"),
        ({"guidance_scale": 7.5}, "guidance_scale", "is not supported: guidance was distilled"),
        ({"colour": "red"}, "colour", "is not supported: the parameters are prompt, seed"),
        ({"steps": 4}, "steps", "is 4, allowed is 1"),
        ({"num_inference_steps": True}, "num_inference_steps", "is True, allowed is 1"),
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": 3}, "prompt", "is 3: input should be a valid string"),
        ({"prompt": "a\0b"}, "prompt", "has control characters"),
        ({"prompt": "a" * 2001}, "prompt", "has 2001 characters, allowed are 2000"),
        ({"prompt": "a " * 100}, "prompt", "is 102 tokens long with start and end, allowed are 77"),
        ({"seed": -1}, "seed", "is -1: input should be greater than or equal to 0"),
        ({"seed": 2**64}, "seed", f"is {2**64}: input should be less than"),
        ({"seed": 1.0}, "seed", "is 1.0: input should be a valid integer"),
        ({"seed": 2**64 - 1, "num_images": 2}, "seed", f"of the last picture would be {2**64}"),
        ({"num_images": 0}, "num_images", "is 0: input should be greater"),
        ({"num_images": 9}, "num_images", "is 9, allowed is 1 to 8"),
        ({"size": "32x32"}, "size", "is 32x32, tiny/1 has sizes: 64x64"),
        ({"size": "big"}, "size", "is 'big', allowed is WIDTHxHEIGHT"),
        ({"format": "gif"}, "format", "is 'gif': input should be 'png', 'jpeg', 'webp' or 'raw'"),
        ({"quality": 50}, "quality", "applies to jpeg and webp, the format is png"),
        ({"format": "jpeg", "quality": 101}, "quality", "is 101: input should be less"),
    ],
)
def test_a_bad_field_is_refused_by_name(settings, fields, name, sentence):
    answer = ask(settings, RED | fields)
    detail = problem(answer, 422, "invalid-parameters")
    (error,) = answer.json()["errors"]
    assert error["name"] == name
    assert error["detail"].startswith(sentence)
    assert detail == f"{name}: {error['detail']}"


@pytest.mark.parametrize("name", ["other", "tiny/2", ""])
def test_a_model_that_is_not_served_is_not_found(settings, name):
    answer = ask(settings, RED | {"model": name})
    detail = problem(answer, 404, "model-not-found")
    assert detail == f"model: is {name!r}, served is tiny, as tiny/1"


def test_every_bad_field_is_named_at_once(settings):
    answer = ask(settings, {"seed": "5", "cfg_scale": 3})
    names = [error["name"] for error in answer.json()["errors"]]
    assert sorted(names) == ["cfg_scale", "prompt", "seed"]
    assert "prompt: is required" in problem(answer, 422, "invalid-parameters")


def test_of_thousands_of_bad_fields_some_are_named_and_all_are_counted(settings):
    answer = ask(settings, RED | {f"field{number}": 1 for number in range(3000)})
    named = answer.json()["errors"]
    assert named[0] == {"name": "body", "detail": "3000 faults, of which the first 20 are named"}
    assert [error["name"] for error in named[1:]] == [f"field{number}" for number in range(20)]
    assert len(answer.content) < 10_000


@pytest.mark.parametrize(
    "fields", [{"steps": 1, "num_inference_steps": 1}, {"model": "tiny"}, {"model": "tiny/1"}]
)
def test_what_changes_nothing_is_accepted(settings, fields):
    assert ask(settings, RED | fields).status_code == 200


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body is empty"),
        (b'{"prompt": ', "the body is not JSON: EOF"),
        (b'{"prompt": "\xff"}', "the body is not JSON: invalid unicode"),
        (b"[" * 9000, "the body is not JSON: recursion limit"),
        (b'["a red circle"]', "the body is JSON, but not an object"),
        (b"null", "the body is JSON, but not an object"),
    ],
)
def test_a_body_that_is_no_json_object_is_malformed(settings, body, sentence):
    assert problem(ask(settings, body), 400, "malformed-body").startswith(sentence)


def test_a_long_value_is_quoted_in_part(settings):
    detail = problem(ask(settings, RED | {"format": "x" * 500}), 422, "invalid-parameters")
    assert "xxx...:" in detail
    assert len(detail) < 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type_is_refused(settings, kind):
    answer = ask(settings, b'{"prompt": "a"}', headers={"Content-Type": kind})
    detail = problem(answer, 415, "unsupported-media-type")
    assert detail == f"Content-Type is {kind or 'not given'}, allowed is application/json"


def test_a_body_that_is_compressed_is_refused_by_its_coding(settings):
    answer = ask(settings, b"\x1f\x8b", headers={"Content-Encoding": "GZip"})
    detail = problem(answer, 415, "unsupported-media-type")
    assert detail == "Content-Encoding is gzip, allowed is a body that is not encoded"
    assert ask(settings, RED, headers={"Content-Encoding": "identity"}).status_code == 200


def test_a_length_of_thousands_of_digits_is_a_length(settings):
    body = json.dumps(RED).encode()
    length = str(len(body)).rjust(5000, "0")
    assert ask(settings, body, headers={"Content-Length": length}).status_code == 200


def test_a_body_over_the_limit_is_refused_declared_or_not(settings):
    async def chunks():
        for _ in range(3):
            yield b" " * 30_000

    async def talk():
        async with client_of(create_app(settings, FakeBackend())) as client:
            headers = {"Content-Type": "application/json"}
            for content in (b" " * 70_000, chunks()):
                yield await client.post("/generate", content=content, headers=headers)

    async def collect():
        return [answer async for answer in talk()]

    for answer in asyncio.run(collect()):
        assert problem(answer, 413, "body-too-large").endswith("allowed are 65536 bytes")


def test_unknown_paths_and_wrong_methods_are_problems_too(settings):
    async def talk():
        async with client_of(create_app(settings, FakeBackend())) as client:
            return [await client.get("/nowhere"), await client.get("/generate")]

    unknown, wrong = asyncio.run(talk())
    assert problem(unknown, 404, "not-found") == "GET /nowhere: Not Found"
    assert problem(wrong, 405, "method-not-allowed") == "GET /generate: Method Not Allowed"
    assert wrong.headers["allow"] == "POST"


async def broken(feeds):
    raise InferenceError("the model failed on this picture; the log says why")


async def buggy(feeds):
    raise ZeroDivisionError("a secret of the house")


def test_a_failing_back_end_is_a_problem_without_its_trace(settings):
    failed = ask(settings, RED | {"num_images": 3}, FakeBackend(broken))
    assert "the model failed" in problem(failed, 500, "inference-failed")
    bug = ask(settings, RED, FakeBackend(buggy))
    assert "secret" not in problem(bug, 500, "internal-error")


@pytest.mark.parametrize(
    "value", ["0", "-5", "soon", "1.5", "9" * 30, "٣", "1".rjust(12, "0") + "0" * 5000]
)
def test_a_deadline_that_is_no_number_of_milliseconds_is_refused(settings, value):
    headers = {"X-Deadline-Ms": value.encode()}
    answer = ask(settings, RED, headers=headers)
    assert problem(answer, 422, "invalid-parameters").startswith("X-Deadline-Ms: is ")


def test_a_deadline_that_cannot_be_met_is_refused_with_the_time_to_wait(settings):
    backend = FakeBackend(wait_s=9.5, each_s=0.5)
    answer = ask(settings, RED, backend, headers={"X-Deadline-Ms": "3000"})
    detail = problem(answer, 429, "deadline-cannot-be-met")
    assert detail.startswith("ready in 10000 ms, the deadline is 3000 ms; others come first")
    assert answer.headers["retry-after"] == "7"
    assert ask(settings, RED, backend, headers={"X-Deadline-Ms": "10000"}).status_code == 200


def test_the_servers_deadline_holds_where_the_caller_gives_none(settings):
    answer = ask(settings.model_copy(update={"deadline_ms": 1000}), RED, FakeBackend(wait_s=4.2))
    problem(answer, 429, "deadline-cannot-be-met")
    assert answer.headers["retry-after"] == "4"


def test_a_full_queue_is_refused_with_the_time_to_wait(repository):
    settings = Settings(repository=repository, max_queue=4, max_images=4)
    opened = asyncio.Event()

    async def held(feeds):
        await opened.wait()
        return feeds["noise"][:3].transpose(1, 2, 0).astype("uint8")

    async def talk():
        async with client_of(create_app(settings, FakeBackend(held, wait_s=20))) as client:
            first = asyncio.create_task(client.post("/generate", json=RED | {"num_images": 4}))
            await asyncio.sleep(0.05)
            refused = await client.post("/generate", json=RED)
            opened.set()
            return await first, refused, await client.post("/generate", json=RED)

    first, refused, later = asyncio.run(talk())
    assert (first.status_code, later.status_code) == (200, 200)
    assert problem(refused, 429, "queue-full").startswith("4 pictures are in work and 1 more")
    assert refused.headers["retry-after"] == "20"  # a request gives all its places back at once


def test_every_error_that_a_request_can_meet_has_a_status():
    startup = {"SettingsError", "RepositoryError", "RequestError", "RetryableError"}

    def below(kind):
        return [kind, *(leaf for child in kind.__subclasses__() for leaf in below(child))]

    assert {kind.__name__ for kind in below(ServeError)[1:]} - startup == {
        kind.__name__ for kind in STATUSES
    }
