"""Raw pixels over HTTP: asked for by name only, and never of another picture than the PNG."""

import base64
import io

import numpy as np
import pytest
from fake_backend import ask
from PIL import Image

from serve.app import create_app
from serve.backend_ort import OrtBackend

RED = {"prompt": "a red circle", "seed": 5}
RAW = {**RED, "format": "raw"}


def test_raw_is_the_png_decoded(settings, model):
    png, raw = (ask(settings, body, OrtBackend(model, 1, measure_s=0)) for body in (RED, RAW))
    assert raw.headers["content-type"] == "application/octet-stream"
    assert (raw.headers["x-size"], raw.headers["x-seed"]) == ("64x64", "5")
    assert "x-size" not in png.headers
    pixels = np.frombuffer(raw.content, np.uint8).reshape(64, 64, 3)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(png.content))))


def test_several_raw_pictures_come_as_json_with_their_size_in_the_header(settings):
    answer = ask(settings, {**RAW, "num_images": 2})
    assert answer.headers["x-size"] == "64x64"
    assert answer.json()["media_type"] == "application/octet-stream"
    lengths = [len(base64.b64decode(image["image"])) for image in answer.json()["images"]]
    assert lengths == [64 * 64 * 3] * 2


def test_raw_has_an_entity_tag_of_its_own(settings):
    tags = [ask(settings, body).headers["etag"] for body in (RED, RAW, RAW)]
    assert tags[0] != tags[1] == tags[2]
    again = ask(settings, RAW, headers={"If-None-Match": tags[1]})
    assert (again.status_code, again.content, again.headers["x-size"]) == (304, b"", "64x64")


@pytest.mark.parametrize("accept", ["application/octet-stream", "*/*"])
def test_accept_alone_never_means_raw(settings, accept):
    answer = ask(settings, RED, headers={"Accept": accept})
    assert answer.headers["content-type"] == "image/png"


def test_raw_takes_no_quality(settings):
    answer = ask(settings, {**RAW, "quality": 50})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "quality: applies to jpeg and webp, the format is raw"


def test_openai_has_no_raw(settings):
    schema = create_app(settings).openapi()["components"]["schemas"]["ImagesRequest"]
    assert "raw" not in str(schema["properties"]["output_format"])
