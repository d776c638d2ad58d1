"""The judge of the shapes example, and the pictures that its recipes learn from."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.judge import FUNCTIONS, load_judge
from distill.metrics import frechet_distance, shares

JUDGE = Path(__file__).parents[1] / "examples" / "shapes" / "judge.py"


@pytest.fixture(scope="module")
def judge(shapes):
    return load_judge(JUDGE)


def test_the_judge_file_defines_what_evaluation_asks_for(judge) -> None:
    assert all(callable(getattr(judge, name)) for name in FUNCTIONS)


def test_captions_are_full_seeded_and_half_of_one_object(shapes, judge) -> None:
    captions = judge.captions(360, 1)
    assert captions == judge.captions(360, 1) != judge.captions(360, 2)
    scenes = [shapes.world.parse(caption) for caption in captions]
    assert [len(scene) for scene in scenes] == [1] * 180 + [2] * 180
    assert all(thing.is_full for scene in scenes for thing in scene)
    assert len(set(captions[:180])) == 180  # every one of them, before any twice
    assert [len(judge.captions(n, 0)) for n in (1, 2, 7)] == [1, 2, 7]


def test_reference_pictures_are_right_and_their_attributes_finite(judge) -> None:
    captions = judge.captions(60, 3)
    pictures = list(judge.reference(captions, 4))
    assert all(judge.right(c, p) for c, p in zip(captions, pictures, strict=True))
    rows = np.array([judge.attributes(picture) for picture in pictures])
    assert rows.shape == (60, 23)
    assert np.isfinite(rows).all()
    again = list(judge.reference(captions, 4))
    assert all(np.array_equal(a, b) for a, b in zip(pictures, again, strict=True))


def test_attributes_of_a_blank_picture_are_numbers_too(judge) -> None:
    numbers = judge.attributes(np.full((64, 64, 3), 235, np.uint8))
    assert len(numbers) == 23
    assert np.isfinite(numbers).all()


def test_the_distance_of_drawn_pictures_is_small_and_of_other_ones_large(judge) -> None:
    captions = judge.captions(200, 5)

    def rows(pictures) -> np.ndarray:
        return np.array([judge.attributes(picture) for picture in pictures])

    real = rows(judge.reference(captions, 6))
    again = frechet_distance(rows(judge.reference(captions, 7)), real)
    one_kind = ["a small red circle on the left"] * 200
    other = frechet_distance(rows(judge.reference(one_kind, 8)), real)
    mirrored = frechet_distance(rows(p[:, ::-1] for p in judge.reference(one_kind, 9)), real)
    assert 0 <= again < 0.5 < 10 * again + 5 < min(other, mirrored)


def test_each_mode_of_a_vague_caption_is_told_from_the_others(judge) -> None:
    for caption in judge.vague_captions():
        modes = judge.modes(caption)
        pictures = judge.reference(modes, 10)
        assert [judge.mode(caption, picture) for picture in pictures] == modes


def test_a_picture_outside_the_caption_shows_none_of_its_modes(judge) -> None:
    (picture,) = judge.reference(["a small red circle on the left"], 11)
    assert judge.mode("a red shape on the left", picture) == "a small red circle on the left"
    assert judge.mode("a blue shape on the left", picture) is None
    assert judge.mode("a red square", picture) is None


def test_an_even_generator_gives_every_mode_its_share(judge) -> None:
    caption = "a small red circle"
    modes = judge.modes(caption)
    pictures = judge.reference(modes * 4, 12)
    found = shares([judge.mode(caption, picture) for picture in pictures], modes)
    assert found == dict.fromkeys(modes, 1 / len(modes))


def draw(monkeypatch: pytest.MonkeyPatch, shapes, out: Path, seed: int = 0) -> None:
    options = ["--per-caption", "1", "--pairs", "12", "--seed", str(seed)]
    monkeypatch.setattr(sys, "argv", ["draw_pictures.py", "--out", str(out), *options])
    shapes.draw_pictures.main()


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_every_drawn_picture_is_what_each_of_its_captions_says(
    shapes, judge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draw(monkeypatch, shapes, tmp_path / "pictures")
    text = (tmp_path / "pictures" / "metadata.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    files = {line["file_name"] for line in lines}
    assert len(files) == 180 + 12
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {*files, "metadata.jsonl"}
    assert len({line["text"] for line in lines}) == 3 * 7 * 4 * 6 + 12
    scenes = {
        name: shapes.checker.read(np.asarray(Image.open(tmp_path / "pictures" / name))).scene
        for name in files
    }
    for line in lines:
        wanted, seen = shapes.world.parse(line["text"]), scenes[line["file_name"]]
        orders = (seen, seen[::-1])
        assert any(
            len(order) == len(wanted)
            and all(w.allows(s) and s.is_full for w, s in zip(wanted, order, strict=True))
            for order in orders
        ), line


def test_the_same_seed_draws_the_same_bytes_and_a_full_folder_is_left_alone(
    shapes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw(monkeypatch, shapes, tmp_path / name, seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    before = digest(tmp_path / "a")
    capsys.readouterr()
    draw(monkeypatch, shapes, tmp_path / "a", seed=9)
    assert capsys.readouterr().out == f"{tmp_path / 'a'} is there already\n"
    assert digest(tmp_path / "a") == before
