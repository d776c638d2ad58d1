"""The manifest's digest is what `sha256sum` says, and a folder that differs from it is refused."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from export.errors import RepositoryError
from export.repository.manifest import (
    check_version,
    complete,
    digest_of,
    file_records,
    write_manifest,
)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph" * 1000)
    (folder / "tokenizer.json").write_text("{}")
    write_manifest(complete({"task": "text-to-image"}, folder, "tiny", 1), folder)
    return folder


def change(folder: Path, **changes: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_the_digest_is_that_of_the_output_of_sha256sum(version: Path) -> None:
    names = ["model.onnx", "tokenizer.json"]
    printed = subprocess.run(["sha256sum", *names], cwd=version, capture_output=True, check=True)
    manifest = check_version(version)
    assert manifest["digest"] == hashlib.sha256(printed.stdout).hexdigest()
    assert manifest["files"]["model.onnx"]["bytes"] == 5000


def test_the_digest_does_not_depend_on_order_name_or_version(version: Path) -> None:
    records = file_records(p for p in version.iterdir() if p.name != "manifest.json")
    backwards = dict(reversed(records.items()))
    assert digest_of(records) == digest_of(backwards)
    assert complete({}, version, "other", 7)["digest"] == digest_of(records)


def test_a_missing_folder_manifest_and_file_are_named(version: Path) -> None:
    with pytest.raises(RepositoryError, match="2 does not exist"):
        check_version(version.parent / "2")
    (version / "tokenizer.json").unlink()
    with pytest.raises(RepositoryError, match=r"tokenizer\.json is missing"):
        check_version(version)
    (version / "manifest.json").unlink()
    with pytest.raises(RepositoryError, match=r"has no manifest\.json: it is half written"):
        check_version(version)


def test_a_file_cut_off_changed_or_added_is_named(version: Path) -> None:
    graph = version / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1])
    with pytest.raises(RepositoryError, match=r"has 4999 bytes; the manifest says 5000"):
        check_version(version)
    graph.write_bytes(b"G" + whole[1:])
    with pytest.raises(RepositoryError, match=r"model\.onnx has sha256 \w+; the manifest says"):
        check_version(version)
    graph.write_bytes(whole)
    (version / "model.bin").touch()
    with pytest.raises(RepositoryError, match=r"holds model\.bin, which its manifest"):
        check_version(version)


def test_a_manifest_that_is_none_is_refused(version: Path) -> None:
    change(version, digest="0" * 64)
    with pytest.raises(RepositoryError, match="is not that of the files it lists"):
        check_version(version)
    change(version, format=2)
    with pytest.raises(RepositoryError, match="is 2; this program reads 1: a later release"):
        check_version(version)
    for text, sentence in (("{", "not valid JSON"), ("[]", "is no JSON object")):
        (version / "manifest.json").write_text(text)
        with pytest.raises(RepositoryError, match=sentence):
            check_version(version)
