"""A picture's entity tag is known before the picture, and spares it."""

import asyncio
import dataclasses

import pytest
from fake_backend import FakeBackend, ask, client_of, grey

from serve import images
from serve.app import create_app
from serve.etag import entity_tag, identity, matches
from serve.generate import read_order
from serve.schemas import parse_fields

RED = {"prompt": "a red circle", "seed": 5}


def talk(settings, *requests, backend=None):
    """Answers of one gateway to (body, headers), one after another."""

    async def run():
        async with client_of(create_app(settings, backend or FakeBackend())) as client:
            return [
                await client.post("/generate", json=body, headers=headers)
                for body, headers in requests
            ]

    return asyncio.run(run())


def tag_of(settings, body, **headers):
    (answer,) = talk(settings, (body, headers))
    assert answer.status_code == 200
    return answer.headers.get("etag")


def test_a_picture_that_the_caller_has_is_not_drawn(settings):
    drawn = []

    async def counted(feeds):
        drawn.append(1)
        return await grey(feeds)

    tag = tag_of(settings, RED)
    known = {"If-None-Match": f'"other", {tag}'}
    (same, other) = talk(
        settings, (RED, known), (RED | {"seed": 6}, known), backend=FakeBackend(counted)
    )
    assert (same.status_code, same.content) == (304, b"")
    assert (same.headers["etag"], same.headers["x-model"]) == (tag, "tiny/1")
    assert (same.headers["vary"], "content-type" in same.headers) == ("Accept", False)
    assert other.status_code == 200
    assert len(drawn) == 1


def test_it_is_answered_even_where_the_queue_is_full(settings):
    tag = tag_of(settings, RED)
    busy = FakeBackend(wait_s=1e6)
    (spared, refused) = talk(settings, (RED, {"If-None-Match": tag}), (RED, {}), backend=busy)
    assert (spared.status_code, refused.status_code) == (304, 429)


def test_equal_tags_are_equal_bytes_on_the_real_model(settings):
    async def run():
        async with client_of(create_app(settings)) as client:
            bodies = [RED, RED, RED | {"seed": 6}, RED | {"format": "jpeg"}, RED | {"steps": 1}]
            return [await client.post("/generate", json=body) for body in bodies]

    first, again, other, jpeg, same = asyncio.run(run())
    assert first.headers["etag"] == again.headers["etag"] == same.headers["etag"]
    assert first.content == again.content == same.content
    assert len({one.headers["etag"] for one in (first, other, jpeg)}) == 3
    assert len({one.content for one in (first, other, jpeg)}) == 3


def test_without_a_seed_there_is_no_tag_and_nothing_matches(settings):
    (answer,) = talk(settings, ({"prompt": "a red circle"}, {"If-None-Match": "*"}))
    assert answer.status_code == 200
    assert "etag" not in answer.headers


def test_json_and_bytes_of_one_picture_have_tags_of_their_own(settings):
    assert tag_of(settings, RED) != tag_of(settings, RED, Accept="application/json")


def test_what_is_wrong_with_a_request_is_said_before_it_is_spared(settings):
    answer = ask(settings, RED | {"size": "1x1"}, headers={"If-None-Match": "*"})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a blue circle"},
        {"seed": 6},
        {"num_images": 2},
        {"format": "webp"},
        {"format": "webp", "quality": 80},
        {"format": "webp", "quality": 81},
    ],
)
def test_the_identity_hangs_on_every_part_of_an_order(settings, model, change):
    base, other = (
        identity(read_order(parse_fields(fields), model, settings), model)
        for fields in (RED, RED | change)
    )
    assert base != other


def test_the_identity_hangs_on_artefact_size_and_encoders(settings, model, monkeypatch):
    order = read_order(parse_fields(RED), model, settings)
    digest = model.manifest.model_copy(update={"digest": "0" * 64})
    version = model.manifest.model_copy(update={"version": 2})
    found = {
        identity(order, model),
        identity(dataclasses.replace(order, size="96x64"), model),
        identity(order, dataclasses.replace(model, manifest=digest)),
        identity(order, dataclasses.replace(model, manifest=version)),
    }
    monkeypatch.setattr("serve.etag.encoder_versions", lambda: "another Pillow")
    assert len(found | {identity(order, model)}) == 5


def test_the_encoders_are_named_with_their_versions():
    names = [part.split(" ")[0] for part in images.encoder_versions().split(", ")]
    assert names == ["pil", "zlib", "zlib_ng", "jpg", "libjpeg_turbo", "webp"]
    assert "pil None" not in images.encoder_versions()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("*", True),
        (" * ", True),
        ('"TAG"', True),
        ('W/"TAG"', True),
        ('"a", W/"b","TAG"', True),
        ('"a,b", "c"', False),
        ("TAG", False),
        ('"TAG', False),
        ('"xTAG"', False),
    ],
)
def test_if_none_match_is_a_list_of_tags(header, expected):
    tag = entity_tag("identity", "image/png")
    line = header.replace('"TAG', tag[:-1]).replace("TAG", tag[1:-1])
    assert matches([line], tag) == matches(['"a"', line], tag) == expected
    assert not matches([], tag)


def test_if_none_match_may_come_in_several_lines(settings):
    tag = tag_of(settings, RED)
    lines = [("If-None-Match", '"other"'), ("If-None-Match", tag)]
    (answer,) = talk(settings, (RED, lines))
    assert answer.status_code == 304
