"""The format that Accept likes best, where the body names none."""

import io

import pytest
from fake_backend import ask
from PIL import Image

from serve.accept import best_format, wants_json

RED = {"prompt": "a red circle", "seed": 5}


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "png"),
        ("*/*", "png"),
        ("image/*", "png"),
        ("text/html", "png"),
        ("image/webp", "webp"),
        ("IMAGE/JPEG", "jpeg"),
        ("image/jpeg, image/webp", "jpeg"),
        ("image/jpeg;q=0.5, image/webp;q=0.9", "webp"),
        ("image/avif,image/webp,*/*;q=0.8", "webp"),
        ("image/png;q=0, image/*", "jpeg"),
        ("image/*;q=0, */*", "png"),
        ("image/*;q=0.1, */*;q=0.9, image/webp;q=0.2", "webp"),
        ("image/webp;q=2, image/jpeg;q=0.1", "jpeg"),
        ("image/webp; charset=x; q=0.3, */*;q=0.2", "webp"),
        (";;,,;q=,", "png"),
    ],
)
def test_the_highest_weight_wins_and_png_where_several_have_it(accept, expected):
    assert best_format(accept) == expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/json", True),
        ("text/html, Application/JSON;q=0.001", True),
        ("application/json;q=0.0", False),
        ("application/json; q=0", False),
        ("*/*", False),
        ("application/*", False),
        ("application/jsonl", False),
    ],
)
def test_json_is_wanted_only_by_its_name(accept, expected):
    assert wants_json(accept) is expected


def test_a_picture_comes_in_the_format_that_was_accepted(settings):
    answer = ask(settings, RED, headers={"Accept": "image/webp"})
    assert (answer.headers["content-type"], answer.headers["vary"]) == ("image/webp", "Accept")
    assert Image.open(io.BytesIO(answer.content)).format == "WEBP"


def test_the_bodys_format_comes_before_accept(settings):
    answer = ask(settings, RED | {"format": "jpeg"}, headers={"Accept": "image/webp"})
    assert answer.headers["content-type"] == "image/jpeg"


def test_json_holds_pictures_of_the_accepted_format(settings):
    answer = ask(settings, RED, headers={"Accept": "application/json, image/webp"})
    assert answer.json()["media_type"] == "image/webp"


def test_a_quality_goes_with_an_accepted_format(settings):
    headers = {"Accept": "image/jpeg"}
    assert ask(settings, RED | {"quality": 30}, headers=headers).status_code == 200
    assert ask(settings, RED | {"quality": 30}, headers={"Accept": "*/*"}).status_code == 422
