"""One picture without a server: what it says when it cannot be made."""

from pathlib import Path

import pytest

from serve.errors import InvalidParametersError, RepositoryError, ServeError
from serve.generate import Generator, generate_file, time_pictures
from serve.settings import Settings


def test_a_seed_is_drawn_if_none_is_given(settings, tmp_path):
    seeds = {generate_file(settings, "a", None, tmp_path / "a.png").origin.seed for _ in range(2)}
    assert len(seeds) == 2


def test_a_suffix_without_a_format_is_refused(settings):
    with pytest.raises(ServeError, match=r"a.gif ends in '.gif', allowed are: .png, .jpg, .jpeg"):
        generate_file(settings, "a", 1, Path("a.gif"))


def test_a_missing_folder_is_said_before_any_work(tmp_path):
    with pytest.raises(ServeError, match="there is no folder"):
        generate_file(Settings(repository=tmp_path), "a", 1, tmp_path / "no" / "a.png")


def test_a_file_that_cannot_be_written_is_named(settings, tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ServeError, match=r"a.png cannot be written: Is a directory"):
        generate_file(settings, "a", 1, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seed": -1}, "seed: is -1"),
        ({"size": "1x1"}, "size: is 1x1, tiny/1 has sizes: 64x64"),
        ({"quality": 9}, "quality: applies to jpeg and webp"),
        ({"prompt": "a " * 99}, "prompt: is 101 tokens long"),
    ],
)
def test_bad_arguments_are_named_as_over_http(settings, tmp_path, arguments, sentence):
    with pytest.raises(InvalidParametersError, match=sentence):
        generate_file(
            settings, **({"prompt": "a", "seed": 1, "out": tmp_path / "a.png"} | arguments)
        )


def test_a_missing_repository_is_one_sentence(tmp_path):
    with pytest.raises(RepositoryError, match="is not a folder"):
        generate_file(Settings(repository=tmp_path / "no"), "a", 1, tmp_path / "a.png")


def test_timing_makes_the_asked_number_of_pictures_and_one_to_warm_up(settings, monkeypatch):
    seeds = []
    generate = Generator.generate

    async def counted(self, order):
        seeds.extend(order.seeds)
        return await generate(self, order)

    monkeypatch.setattr(Generator, "generate", counted)
    times = time_pictures(settings, 3)
    assert len(times) == 3
    assert seeds == [0, 1, 2, 3]
    assert all(0 < seconds < 60 for seconds in times)


def test_timing_says_what_is_wrong_as_generating_does(settings, tmp_path):
    with pytest.raises(RepositoryError, match="is not a folder"):
        time_pictures(Settings(repository=tmp_path / "no"), 1)
    with pytest.raises(InvalidParametersError, match="tokens long"):
        time_pictures(settings, 1, prompt="a " * 99)
