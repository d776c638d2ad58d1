"""What is served: pins, rollbacks, versions kept, engines added later, other runtimes."""

import json
from pathlib import Path

import pytest

from export.errors import ExportError, RepositoryError
from export.repository.addition import add_engine, serve_with
from export.repository.manifest import check_version, describe
from export.repository.publish import Published, publish, staging, versions
from export.repository.serving import rollback, served_versions
from export.repository.triton_config import PYTHON_MODEL, ServingOptions, parse, triton_config
from export.signature import text_to_image

SIGNATURE = text_to_image(4, 8, 64)
CONFIG = triton_config("tiny", SIGNATURE, 8)
FACTS = {**describe(SIGNATURE, 8), "service_ms": {"1": 10.0, "2": 15.0}}


def put(repository: Path, config: str = CONFIG, keep: int | None = None, **files: bytes):
    with staging(repository) as staged:
        (staged / "model.onnx").write_bytes(b"graph")
        for name, content in files.items():
            (staged / f"{name}.plan").write_bytes(content)
        return publish(staged, repository, "tiny", config, FACTS, keep)


def config_of(repository: Path):
    return parse((repository / "tiny" / "config.pbtxt").read_text())


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A repository with versions 1, 2 and 3."""
    for _ in range(3):
        put(tmp_path / "repository")
    return tmp_path / "repository"


def test_a_rollback_pins_the_version_before_and_a_roll_forward_unpins(three: Path) -> None:
    assert served_versions(three / "tiny") == [2, 3]
    assert rollback(three, "tiny") == 2
    assert served_versions(three / "tiny") == [2]
    assert rollback(three, "tiny") == 1
    assert list(config_of(three).version_policy.specific.versions) == [1]
    with pytest.raises(RepositoryError, match=r"version 1 of .*tiny is the oldest; there is none"):
        rollback(three, "tiny")
    assert rollback(three, "tiny", 3) == 3
    assert config_of(three).version_policy.latest.num_versions == 2
    assert [path.name for path in three.iterdir()] == ["tiny"]


def test_a_rollback_to_what_is_not_there_or_not_whole_changes_nothing(three: Path) -> None:
    before = (three / "tiny" / "config.pbtxt").read_bytes()
    (three / "tiny" / "2" / "model.onnx").write_bytes(b"grap")
    with pytest.raises(RepositoryError, match=r"model\.onnx has 4 bytes; the manifest says 5"):
        rollback(three, "tiny")
    with pytest.raises(RepositoryError, match=r"no version 7 in .*tiny; it holds 1, 2, 3"):
        rollback(three, "tiny", 7)
    with pytest.raises(RepositoryError, match=r"no model 'big' in .*; it holds tiny"):
        rollback(three, "big")
    with pytest.raises(RepositoryError, match=r"no model 'tiny' in .*; it holds nothing"):
        rollback(three / "elsewhere", "tiny")
    assert (three / "tiny" / "config.pbtxt").read_bytes() == before


def test_a_version_published_while_one_is_pinned_waits(three: Path) -> None:
    rollback(three, "tiny")
    published = put(three)
    assert (published.version, published.served) == (4, 2)
    assert list(config_of(three).version_policy.specific.versions) == [2]
    (three / "tiny" / "2").rename(three / "two")
    with pytest.raises(RepositoryError, match=r"config\.pbtxt pins 2; the folder holds 1, 3, 4"):
        served_versions(three / "tiny")


def test_a_config_that_serves_all_or_has_no_policy_is_understood(three: Path) -> None:
    file = three / "tiny" / "config.pbtxt"
    start = CONFIG.index("version_policy")
    bare = CONFIG[:start] + CONFIG[CONFIG.index("max_batch_size") :]
    for policy, served in (("", [3]), ("version_policy { all { } }", [1, 2, 3])):
        file.write_text(bare + policy)
        assert served_versions(three / "tiny") == served
    file.unlink()
    with pytest.raises(RepositoryError, match=r"has no config\.pbtxt"):
        rollback(three, "tiny")


def test_only_as_many_versions_are_kept_as_asked_and_never_is_the_served_one_removed(
    three: Path,
) -> None:
    assert put(three).removed == ()
    published = put(three, keep=2)
    assert (published.removed, versions(three / "tiny")) == ((1, 2, 3), [4, 5])
    rollback(three, "tiny", 4)
    published = put(three, keep=1)
    assert (published.removed, published.served) == ((5,), 4)
    assert versions(three / "tiny") == [4, 6]
    assert put(three, keep=1).version == 7
    assert [path.name for path in three.parent.iterdir()] == ["repository"]


def test_keeping_none_is_refused(three: Path) -> None:
    with pytest.raises(ExportError, match="keep is 0; it must be at least 1"):
        put(three, keep=0)
    assert versions(three / "tiny") == [1, 2, 3]


def test_a_config_that_names_what_the_version_lacks_is_not_published(tmp_path: Path) -> None:
    config = triton_config("tiny", SIGNATURE, 8, "tensorrt", engines={"9.0": "a.plan"})
    with pytest.raises(RepositoryError, match=r"config\.pbtxt names a\.plan, which the version"):
        put(tmp_path, config)
    assert not any(tmp_path.iterdir())


def test_an_engine_joins_a_version_and_its_files_and_digest(three: Path, tmp_path: Path) -> None:
    plan, version = tmp_path / "model.sm90.plan", three / "tiny" / "3"
    plan.write_bytes(b"an engine")
    before = check_version(version)
    digest = add_engine(version, plan, "9.0", {"gpu": "H200", "seconds": 3})
    manifest = check_version(version)
    facts = {"gpu": "H200", "seconds": 3, "file": "model.sm90.plan"}
    assert manifest["engines"] == {"9.0": facts}
    assert manifest["digest"] == digest != before["digest"]
    assert (version / plan.name).read_bytes() == b"an engine"
    assert {**manifest, "engines": 0, "files": 0, "digest": 0} == {
        **before, "engines": 0, "files": 0, "digest": 0
    }  # fmt: skip
    assert config_of(three).backend == "onnxruntime"
    assert not config_of(three).cc_model_filenames


def test_an_engine_of_the_same_capability_is_replaced(three: Path, tmp_path: Path) -> None:
    version = three / "tiny" / "3"
    for name, capability in (("a.plan", "9.0"), ("b.plan", "8.9"), ("c.plan", "9.0")):
        (tmp_path / name).write_bytes(name.encode())
        add_engine(version, tmp_path / name, capability, {})
    assert check_version(version)["engines"] == {
        "9.0": {"file": "c.plan"},
        "8.9": {"file": "b.plan"},
    }
    (tmp_path / "c.plan").write_bytes(b"rebuilt")
    add_engine(version, tmp_path / "c.plan", "9.0", {})
    assert (version / "c.plan").read_bytes() == b"rebuilt"
    assert {path.name for path in version.glob("*.plan")} == {"b.plan", "c.plan"}
    check_version(version)


@pytest.mark.parametrize(
    ("name", "capability", "sentence"),
    [
        ("model.engine", "9.0", r"file is 'model\.engine'; its name must end in \.plan"),
        ("model.plan", "sm90", "compute capability is 'sm90'; it must be like '9.0'"),
    ],
)
def test_an_engine_of_no_name_is_refused(three, tmp_path, name, capability, sentence) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ExportError, match=sentence):
        add_engine(three / "tiny" / "3", tmp_path / name, capability, {})


def test_an_engine_that_is_not_there_leaves_the_version_as_it_was(three, tmp_path) -> None:
    version = three / "tiny" / "3"
    before = check_version(version)
    with pytest.raises(RepositoryError, match=r"nothing was added to .*3: No such file"):
        add_engine(version, tmp_path / "gone.plan", "9.0", {})
    assert check_version(version) == before


def test_with_tensorrt_the_config_follows_the_engines_of_the_served_version(
    three: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="the runtime is 'tensorrt', but there is no engine"):
        serve_with(three, "tiny", "tensorrt")
    for number, name in ((3, "three.plan"), (2, "two.plan")):
        (tmp_path / name).write_bytes(name.encode())
        add_engine(three / "tiny" / str(number), tmp_path / name, "9.0", {})
    assert serve_with(three, "tiny", "tensorrt", ServingOptions(instances=2)) == 3
    config = config_of(three)
    assert (config.backend, dict(config.cc_model_filenames)) == ("tensorrt", {"9.0": "three.plan"})
    assert list(config.dynamic_batching.preferred_batch_size) == [2]
    assert rollback(three, "tiny") == 2
    assert config_of(three).default_model_filename == "two.plan"
    (tmp_path / "ada.plan").touch()
    add_engine(three / "tiny" / "2", tmp_path / "ada.plan", "8.9", {})
    assert dict(config_of(three).cc_model_filenames) == {"8.9": "ada.plan", "9.0": "two.plan"}
    with pytest.raises(RepositoryError, match="1 has no TensorRT engine, which its model is"):
        rollback(three, "tiny")
    assert served_versions(three / "tiny") == [2]


def test_what_an_operator_has_configured_survives_the_next_version(three: Path) -> None:
    serve_with(three, "tiny", "python", ServingOptions(instances=2, max_queue=7))
    before = (three / "tiny" / "config.pbtxt").read_bytes()
    published: Published = put(three)
    assert (published.version, published.served) == (4, 4)
    assert (three / "tiny" / "config.pbtxt").read_bytes() == before
    assert "model.py" in check_version(published.folder)["files"]


def test_where_tensorrt_serves_a_new_version_waits_for_its_engine(
    three: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.plan").touch()
    add_engine(three / "tiny" / "3", tmp_path / "a.plan", "9.0", {})
    serve_with(three, "tiny", "tensorrt")
    published: Published = put(three)
    assert (published.version, published.served) == (4, 3)
    with pytest.raises(RepositoryError, match="4 has no TensorRT engine"):
        rollback(three, "tiny", 4)
    (tmp_path / "b.plan").touch()
    add_engine(three / "tiny" / "4", tmp_path / "b.plan", "9.0", {})
    assert rollback(three, "tiny", 4) == 4
    assert config_of(three).default_model_filename == "b.plan"


def test_where_tensorrt_serves_two_versions_are_loaded_only_if_both_have_the_engine(
    three: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.plan").touch()
    add_engine(three / "tiny" / "3", tmp_path / "a.plan", "9.0", {})
    serve_with(three, "tiny", "tensorrt")
    assert served_versions(three / "tiny") == [3]
    put(three)
    add_engine(three / "tiny" / "4", tmp_path / "a.plan", "9.0", {})
    assert rollback(three, "tiny", 4) == 4
    assert served_versions(three / "tiny") == [3, 4]
    (three / "tiny" / "3" / "manifest.json").write_text("half a manif")
    rollback(three, "tiny", 4)
    assert served_versions(three / "tiny") == [4]


def test_the_python_runtime_brings_its_model_py(three: Path, tmp_path: Path) -> None:
    rollback(three, "tiny", 2)
    assert serve_with(three, "tiny", "python") == serve_with(three, "tiny", "python") == 2
    for number in (1, 2, 3):
        assert "model.py" in check_version(three / "tiny" / str(number))["files"]
    assert list(config_of(three).version_policy.specific.versions) == [2]
    python = triton_config("tiny", SIGNATURE, 8, "python")
    published: Published = put(tmp_path / "other", python)
    assert (published.folder / "model.py").read_bytes() == PYTHON_MODEL.read_bytes()
    (published.folder / "__pycache__").mkdir()  # as Triton leaves it
    check_version(published.folder)


def test_beside_a_version_of_a_newer_format_nothing_is_published(three: Path) -> None:
    file = three / "tiny" / "2" / "manifest.json"
    file.write_text(json.dumps({"format": 2, "of": "another shape"}))
    with pytest.raises(RepositoryError, match=r"json is 2; this program reads 1: a later"):
        put(three)
    file.write_text("half a manif")
    assert put(three).version == 4
