"""Models as found in a repository: the newest good version, and a sentence for what is not good."""

import json
import logging
import shutil

import pytest
from tiny_repository import write_manifest, write_version

from serve.errors import InvalidParametersError, RepositoryError
from serve.manifest import FileEntry, digest_of
from serve.model import load_model


def load_error(repository, name=None) -> str:
    with pytest.raises(RepositoryError) as caught:
        load_model(repository, name)
    return str(caught.value)


def test_the_only_model_is_served_without_a_name(repository):
    model = load_model(repository)
    assert model.label == "tiny/1"
    assert model.graph.is_file()


def test_the_highest_number_wins_and_other_folders_are_ignored(tmp_path):
    for version in (2, 10):
        write_version(tmp_path, version=version)
    shutil.copytree(tmp_path / "tiny" / "10", tmp_path / "tiny" / ".11-half")
    shutil.copytree(tmp_path / "tiny", tmp_path / ".hidden")
    (tmp_path / "tiny" / "notes").mkdir()
    (tmp_path / "README.md").write_text("not a model")
    assert load_model(tmp_path).label == "tiny/10"


def test_a_missing_or_empty_repository_is_one_sentence(tmp_path):
    assert load_error(tmp_path / "no").endswith("no is not a folder")
    assert load_error(tmp_path).endswith("holds no model")


def test_a_model_must_be_named_if_there_are_several(tmp_path):
    for name in ("one", "two"):
        write_version(tmp_path, model=name)
    assert load_error(tmp_path).endswith("several models, name one of them: one, two")
    assert "no model 'three'" in load_error(tmp_path, "three")
    assert load_model(tmp_path, "two").label == "two/1"


def test_a_half_written_newest_version_is_named_and_the_older_one_served(tmp_path, caplog):
    write_version(tmp_path)
    graph = write_version(tmp_path, version=2) / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING):
        assert load_model(tmp_path).label == "tiny/1"
    assert f"newer version is broken: {graph} has" in caplog.text


def pin(repository, policy: str) -> None:
    text = f'name: "tiny"  # by hand\nversion_policy {{ {policy} }}\nmax_batch_size: 8\n'
    (repository / "tiny" / "config.pbtxt").write_text(text)


def test_after_a_rollback_the_pinned_version_is_served(tmp_path):
    for version in (1, 2, 3):
        write_version(tmp_path, version=version)
    for policy, served in (
        ("latest { num_versions: 1 }", "tiny/3"),
        ("all { }", "tiny/3"),
        ("specific { versions: 1 }", "tiny/1"),
        ("specific: < versions: [2, 1] >", "tiny/2"),
        ("specific { versions: 2; versions: 7 }", "tiny/2"),
    ):
        pin(tmp_path, policy)
        assert load_model(tmp_path).label == served


def test_only_versions_that_triton_would_load_stand_in_for_a_broken_newest_one(tmp_path):
    for version in (1, 2, 10):
        write_version(tmp_path, version=version)
    (tmp_path / "tiny" / "10" / "tokenizer.json").unlink()
    for policy in ("latest { num_versions: 2 }", "latest { num_versions: 7 }", "all { }"):
        pin(tmp_path, policy)
        assert load_model(tmp_path).label == "tiny/2"
    for policy in ("latest { num_versions: 1 }", "latest { }"):
        pin(tmp_path, policy)
        assert "tokenizer.json is missing" in load_error(tmp_path)


def test_a_pinned_version_that_is_broken_or_gone_is_not_replaced_by_another(tmp_path):
    for version in (1, 2):
        write_version(tmp_path, version=version)
    pin(tmp_path, "specific { versions: 1 }")
    (tmp_path / "tiny" / "1" / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in load_error(tmp_path)
    pin(tmp_path, "specific { versions: [9, 4] }")
    assert "serves the versions 4, 9; the folder holds 1, 2" in load_error(tmp_path)
    pin(tmp_path, "specific { versions: }")
    assert "config.pbtxt cannot be read: '}' stands where a value" in load_error(tmp_path)


def test_a_version_without_a_manifest_is_passed_over(tmp_path, caplog):
    write_version(tmp_path)
    (tmp_path / "tiny" / "2").mkdir()
    assert load_model(tmp_path).label == "tiny/1"
    assert "manifest.json cannot be read: No such file" in caplog.text


def test_a_missing_file_a_short_file_and_a_changed_file_are_named(tmp_path):
    folder = write_version(tmp_path)
    tokenizer = folder / "tokenizer_2.json"
    text = tokenizer.read_text()
    tokenizer.write_text(text.replace("circle", "cirkle"))
    assert f"{tokenizer} has SHA-256" in load_error(tmp_path)
    tokenizer.write_text(text[:100])
    assert f"{tokenizer} has 100 bytes" in load_error(tmp_path)
    tokenizer.unlink()
    assert f"{tokenizer} is missing" in load_error(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 2}, "format: is 2, this gateway reads 1: a later release wrote it"),
        ({"format": 0}, "format: Input should be 1, got 0"),
        ({"digest": "0" * 64}, "digest does not match files"),
        ({"graph": "other.onnx"}, "other.onnx is used but not listed in files"),
        ({"sizes": ["32x32"]}, r"sizes is \['32x32'\], the output is"),
        ({"inputs": []}, "inputs must be the tokenizers' inputs and 'noise'"),
        ({"task": "upscale"}, "task: Input should be 'text-to-image' or 'class-to-image', got"),
        ({"task": "class-to-image"}, "class-to-image has classes and no tokenizers"),
        ({"classes": {"count": 3}}, "text-to-image has tokenizers and no classes"),
        ({"tokenizers": {}}, "text-to-image has tokenizers and no classes"),
        ({"max_batch": 0}, "max_batch: Input should be greater than or equal to 1"),
    ],
)
def test_an_inconsistent_manifest_is_one_sentence(tmp_path, changes, sentence):
    write_version(tmp_path, **changes)
    with pytest.raises(RepositoryError, match=sentence):
        load_model(tmp_path)


def test_a_version_that_was_moved_is_named(tmp_path):
    folder = write_version(tmp_path)
    folder.rename(folder.with_name("7"))
    assert "7 holds tiny/1 by its manifest: it was moved" in load_error(tmp_path)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [([None, 4, None, 8], "must have fixed shapes"), ([None, 1, 3, 5], "fewer than 16 values")],
)
def test_noise_of_an_impossible_shape_is_refused(tmp_path, shape, sentence):
    folder = write_version(tmp_path)
    inputs = json.loads((folder / "manifest.json").read_text())["inputs"]
    write_manifest(folder, inputs=[*inputs[:2], inputs[2] | {"shape": shape}])
    assert sentence in load_error(tmp_path)


def test_a_manifest_that_is_not_json_is_named(tmp_path):
    path = write_version(tmp_path) / "manifest.json"
    path.write_text(path.read_text()[:40])
    assert str(path) in load_error(tmp_path)
    assert "Invalid JSON" in load_error(tmp_path)


def test_a_manifest_may_not_point_outside_its_folder(tmp_path):
    folder = write_version(tmp_path)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["../secret"] = files["model.onnx"]
    digest = digest_of({name: FileEntry(**entry) for name, entry in files.items()})
    write_manifest(folder, files=files, digest=digest)
    assert "'../secret', allowed is a plain file name" in load_error(tmp_path)


def test_a_tokenizer_that_pads_to_another_length_is_named(tmp_path):
    short = {"file": "tokenizer.json", "max_length": 64}
    write_version(tmp_path, tokenizers={"input_ids": short, "input_ids_2": short})
    assert "tokenizer.json pads to 77 ids, input input_ids takes 64" in load_error(tmp_path)


def test_a_prompt_is_padded_and_one_over_the_limit_is_refused_with_its_length(model):
    ids = model.tokenize("a red circle")["input_ids"]
    assert ids.tolist() == [1, 4, 5, 7, 2] + [0] * 72
    assert model.tokenize("a " * 75)["input_ids_2"].shape == (77,)
    with pytest.raises(InvalidParametersError, match=r"prompt: is 78 tokens .* allowed are 77"):
        model.tokenize("a " * 76)


def test_ids_that_are_kept_for_the_next_request_cannot_be_spoiled_by_this_one(model):
    first = model.tokenize("a red circle")
    with pytest.raises(ValueError, match="read-only"):
        first["input_ids"][0] = 9
    first["noise"] = first.pop("input_ids")
    assert model.tokenize("a red circle")["input_ids"].tolist() == [1, 4, 5, 7, 2] + [0] * 72
