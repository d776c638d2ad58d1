"""The tokenizer files say, to plain `tokenizers`, what the pipeline's own tokenizers say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from tokenizers import Tokenizer

from export.repository.tokenizers_json import write_tokenizer

PADS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}


@pytest.mark.parametrize("name", PADS)
@pytest.mark.parametrize(
    "text",
    ["", "a red circle", "Red!! and blue, 3 of them", "  naïve\n\t日本  ", "it's <|endoftext|>"],
)
def test_the_files_give_the_ids_of_the_pipeline(run, student, name: str, text: str) -> None:
    plain = Tokenizer.from_file(str(run.exported.folder / f"{name}.json"))
    stock = getattr(student.pipeline, name)(text, padding="max_length", max_length=77).input_ids
    assert plain.encode(text).ids == stock
    assert len(stock) == 77


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=15))
def test_any_short_text_gives_the_same_ids(tmp_path_factory, text: str) -> None:
    for pad, (plain, stock) in both(tmp_path_factory).items():
        ids = stock(text, padding="max_length", max_length=77).input_ids
        assert plain.encode(text).ids == ids, pad


def test_a_text_that_is_too_long_comes_out_longer_instead_of_cut(run) -> None:
    plain = Tokenizer.from_file(str(run.exported.folder / "tokenizer.json"))
    assert len(plain.encode("x " * 75).ids) == 77
    assert len(plain.encode("x " * 76).ids) == 78


def test_writing_does_not_change_the_pipeline_tokenizer(tmp_path) -> None:
    stock = tiny_tokenizer("!")
    write_tokenizer(stock, tmp_path / "a.json")
    assert len(stock("red").input_ids) == 3
    stock("red " * 90, padding="max_length", max_length=77, truncation=True)
    write_tokenizer(stock, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


_BOTH: dict = {}


def both(tmp_path_factory) -> dict:
    """Plain and stock tokenizers by pad token, made once."""
    for pad in PADS.values():
        if pad not in _BOTH:
            stock, file = tiny_tokenizer(pad), tmp_path_factory.mktemp("pad") / "tokenizer.json"
            write_tokenizer(stock, file)
            _BOTH[pad] = (Tokenizer.from_file(str(file)), stock)
    return _BOTH
