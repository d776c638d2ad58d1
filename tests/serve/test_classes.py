"""A class-conditional model behind the gateway: class_label in place of a prompt, everywhere."""

import asyncio
import io
import json
import logging

import numpy as np
import openai
import pytest
from class_repository import CLASSES, NAMES, write_class_version
from fake_backend import ask, client_of
from fake_triton import FakeTriton
from PIL import Image
from tiny_repository import write_version

from serve import noise
from serve.app import create_app
from serve.backend_ort import OrtBackend
from serve.backend_triton import TritonBackend
from serve.classes import Classes
from serve.errors import RepositoryError
from serve.generate import generate_file, time_pictures
from serve.model import load_model
from serve.providers import profile_shapes
from serve.settings import Settings

SEVEN = {"class_label": 2, "seed": 7}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Settings for a repository with the class-conditional model alone."""
    root = tmp_path_factory.mktemp("things") / "repository"
    write_class_version(root)
    return Settings(repository=root, threads=1)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Settings for a repository with a text model beside it; the text model is the default."""
    root = tmp_path_factory.mktemp("both") / "repository"
    write_class_version(root)
    write_version(root)
    return Settings(repository=root, threads=1, model="tiny,things")


def answered(settings, *requests):
    """Answers to (method, path, options) of one gateway with a real session."""

    async def run():
        async with client_of(create_app(settings)) as client:
            return [await client.request(m, path, **options) for m, path, options in requests]

    return asyncio.run(run())


def post(fields, **options):
    return ("POST", "/generate", {"json": fields, **options})


def text_of(answer) -> dict:
    return Image.open(io.BytesIO(answer.content)).text


def test_a_class_and_a_seed_give_the_graphs_picture_with_both_in_its_metadata(things):
    (answer,) = answered(things, post(SEVEN))
    model = load_model(things.repository)
    feeds = {"class_labels": np.array(2), "noise": noise.draw(7, (3, 8, 8))}
    backend = OrtBackend(model, threads=1, measure_s=0)
    asyncio.run(backend.start())
    (drawn,) = backend.run([feeds])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), drawn)
    digest = model.manifest.digest
    expected = {"class_label": "2", "seed": "7", "model": "things/1", "digest": digest}
    assert text_of(answer) == expected


def test_exif_says_the_class(things):
    (answer,) = answered(things, post(SEVEN | {"format": "jpeg"}))
    exif = Image.open(io.BytesIO(answer.content)).getexif()
    assert exif[0x010E] == "class 2"
    assert json.loads(exif.get_ifd(0x8769)[0x9286][8:])["class_label"] == 2


@pytest.mark.parametrize(
    ("fields", "errors"),
    [
        ({}, {"class_label": "is required, as things/1 draws classes: 0 to 4"}),
        (
            {"prompt": "red"},
            {
                "prompt": "is not supported: things/1 draws classes, 0 to 4, by class_label",
                "class_label": "is required, as things/1 draws classes: 0 to 4",
            },
        ),
        ({"class_label": 5}, {"class_label": "is 5, things/1 has the classes 0 to 4"}),
        ({"class_label": 2**70}, {"class_label": f"is {2**70}, things/1 has the classes 0 to 4"}),
        (
            {"class_label": -1},
            {"class_label": "is -1: input should be greater than or equal to 0"},
        ),
        ({"class_label": "2"}, {"class_label": "is '2': input should be a valid integer"}),
        ({"class_label": 2, "size": "64x64"}, {"size": "is 64x64, things/1 has sizes: 8x8"}),
        ({"class": 2}, {"class": "is not supported: the class is called class_label"}),
    ],
)
def test_what_is_not_one_of_its_classes_is_refused_by_name(things, fields, errors):
    (answer,) = answered(things, post(fields))
    assert answer.status_code == 422
    found = {one["name"]: one["detail"] for one in answer.json()["errors"]}
    assert errors.items() <= found.items()


def test_a_text_model_refuses_a_class_and_asks_for_a_prompt(both):
    answers = answered(both, post({"class_label": 2}), post({}), post(SEVEN | {"model": "things"}))
    assert [answer.status_code for answer in answers] == [422, 422, 200]
    found = {one["name"]: one["detail"] for one in answers[0].json()["errors"]}
    assert found == {
        "class_label": "is not supported: tiny/1 has no classes, it draws what a prompt says",
        "prompt": "is required",
    }
    assert answers[1].json()["detail"] == "prompt: is required"


def test_classes_and_seeds_have_etags_of_their_own(things):
    bodies = [SEVEN, SEVEN | {"seed": 8}, SEVEN | {"class_label": 3}, SEVEN]
    tags = [answer.headers["etag"] for answer in answered(things, *map(post, bodies))]
    assert (len(set(tags)), tags[0]) == (3, tags[3])
    again, other = answered(
        things,
        post(SEVEN, headers={"If-None-Match": tags[0]}),
        post(SEVEN | {"class_label": 3}, headers={"If-None-Match": tags[0]}),
    )
    assert (again.status_code, other.status_code) == (304, 200)


def test_several_seeds_of_a_class_come_as_json(things):
    (answer,) = answered(things, post(SEVEN | {"num_images": 3}))
    assert [one["seed"] for one in answer.json()["images"]] == [7, 8, 9]


def test_the_log_names_the_class(things, caplog):
    with caplog.at_level(logging.INFO):
        ask(things, json.dumps(SEVEN).encode(), headers={"Content-Type": "application/json"})
    (line,) = [record for record in caplog.records if record.name == "serve.access_log"]
    assert (line.facts["class_label"], line.facts["seed"]) == (2, 7)


@pytest.mark.parametrize("prompt", ["1", " 1 ", "blue", "BLUE"])
def test_openais_prompt_is_the_name_or_the_number_of_a_class(things, prompt):
    async def run():
        async with client_of(create_app(things)) as http:
            client = openai.AsyncOpenAI(
                base_url="http://gateway/v1", api_key="unused", http_client=http
            )
            made = await client.images.generate(prompt=prompt, extra_body={"seed": 7})
            ours = await http.post(
                "/generate",
                json={"class_label": 1, "seed": 7},
                headers={"Accept": "application/json"},
            )
            return made.data[0].b64_json, ours.json()["images"][0]["image"]

    theirs, ours = asyncio.run(run())
    assert theirs == ours


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": "a dog"}, "prompt: is 'a dog', allowed is the number of a class, 0 to 4, or"),
        ({"prompt": "5"}, "prompt: is '5', allowed is the number of a class, 0 to 4, or the name"),
        ({"prompt": "crane"}, "prompt: is the name of the classes 3, 4: say which by its number"),
        ({"prompt": "1", "class_label": 1}, "class_label: is not supported: the prompt names the"),
    ],
)
def test_openais_prompt_that_names_no_class_is_refused(things, fields, sentence):
    (answer,) = answered(things, ("POST", "/v1/images/generations", {"json": fields}))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(sentence)


def test_models_say_their_task_and_their_classes(both):
    (answer,) = answered(both, ("GET", "/v1/models", {}))
    things, tiny = sorted(answer.json()["data"], key=lambda one: one["id"])
    assert (things["task"], tiny["task"]) == ("class-to-image", "text-to-image")
    assert things["classes"] == {"count": CLASSES, "names": NAMES}
    assert "classes" not in tiny


def test_names_are_optional_and_a_name_goes_before_a_number():
    assert Classes(count=1000).find("999") == 999
    digits = Classes(count=3, names=("2", "one", "0"))
    assert (digits.find("2"), digits.find("1"), digits.find("0")) == (0, 1, 2)
    for text in ("", "-1", "1.0", "٣", "1000", "9" * 5000):
        with pytest.raises(ValueError, match=r"allowed is the number of a class, 0 to 999$"):
            Classes(count=1000).find(text)


def test_a_picture_is_made_without_a_server_and_timed(things, tmp_path):
    out = tmp_path / "a.png"
    picture = generate_file(things, None, 7, out, class_label=2)
    (answer,) = answered(things, post(SEVEN))
    assert out.read_bytes() == answer.content
    assert picture.origin.subject == 2
    assert len(time_pictures(things, 2)) == 2


def test_batches_are_measured_and_change_no_picture(things):
    model = load_model(things.repository)
    backend = OrtBackend(model, threads=1, measure_s=1)
    asyncio.run(backend.start())
    rows = [{**model.example(n), "noise": model.noise(n)} for n in range(7)]
    assert [int(row["class_labels"]) for row in rows] == [0, 1, 2, 3, 4, 0, 1]
    for row, together in zip(rows, backend.run(rows), strict=True):
        np.testing.assert_array_equal(backend.run([row])[0], together)


def test_a_gpu_is_told_the_shape_of_one_number_a_picture(things):
    least, _, most = profile_shapes(load_model(things.repository).manifest)
    assert (least, most) == ("class_labels:1,noise:1x3x8x8", "class_labels:8,noise:8x3x8x8")


def test_triton_gets_one_number_a_picture_as_one_of_one(things):
    model = load_model(things.repository)
    local = OrtBackend(model, threads=1, measure_s=0)
    asyncio.run(local.start())

    async def draw(feeds):
        labels, noises = feeds["class_labels"], feeds["noise"]
        assert labels.shape == (1, 1)
        return np.stack(local.run([{"class_labels": labels[0, 0], "noise": noises[0]}]))

    async def run():
        fake = FakeTriton(model, draw)
        backend = TritonBackend(model, "triton:8001", connect=fake)
        await backend.start()
        assert backend.ready, backend.why_not
        feeds = {**model.condition(2), "noise": model.noise(7)}
        made = await backend.infer(feeds, 5.0)
        await backend.close()
        return made.pixels, local.run([feeds])[0]

    np.testing.assert_array_equal(*asyncio.run(run()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": None}, "the task class-to-image has classes and no tokenizers"),
        ({"classes": {"count": 0}}, r"classes\.count: Input should be greater than or equal to 1"),
        ({"classes": {"count": 2, "names": ["a"]}}, "there are 1 names of 2 classes"),
        ({"inputs": []}, "inputs must be 'class_labels' and 'noise'"),
        (
            {
                "inputs": [
                    {"name": "class_labels", "dtype": "int64", "shape": [None, 1]},
                    {"name": "noise", "dtype": "float32", "shape": [None, 3, 8, 8]},
                ]
            },
            "class_labels must be int64 with one number a picture",
        ),
    ],
)
def test_a_manifest_with_impossible_classes_is_one_sentence(tmp_path, changes, sentence):
    write_class_version(tmp_path, **changes)
    with pytest.raises(RepositoryError, match=sentence):
        load_model(tmp_path)
