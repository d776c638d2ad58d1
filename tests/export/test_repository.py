"""Versions appear whole or not at all: under a full disk, beside a dead process, in a crowd."""

import fcntl
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.errors import RepositoryError
from export.repository.manifest import check_version, describe
from export.repository.publish import Published, check_name, publish, staging, versions
from export.repository.triton_config import difference, triton_config
from export.repository.workplace import PREFIX, remove_leftovers
from export.signature import text_to_image

SIGNATURE = text_to_image(4, 8, 64)
CONFIG = triton_config("tiny", SIGNATURE, 8)


def put(repository: Path, content: bytes = b"graph", config: str = CONFIG) -> Published:
    with staging(repository) as staged:
        (staged / "model.onnx").write_bytes(content)
        return publish(staged, repository, "tiny", config, describe(SIGNATURE, 8))


def tree(repository: Path) -> list[str]:
    return sorted(str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file())


@contextmanager
def files_limited_to(length_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond the limit."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_the_first_version_brings_the_model_and_the_next_lies_beside_it(tmp_path: Path) -> None:
    first, second = put(tmp_path / "new" / "repository"), put(tmp_path / "new" / "repository", b"2")
    assert (first.version, second.version) == (1, 2)
    assert tree(tmp_path / "new" / "repository") == [
        "tiny/1/manifest.json",
        "tiny/1/model.onnx",
        "tiny/2/manifest.json",
        "tiny/2/model.onnx",
        "tiny/config.pbtxt",
    ]
    assert check_version(second.folder)["version"] == 2
    assert check_version(first.folder)["digest"] == first.digest != second.digest


def test_readers_of_other_users_may_open_what_is_published(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        folder = put(tmp_path).folder
    finally:
        os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert folder.parent.stat().st_mode & 0o777 == 0o755


def test_tritons_own_protobuf_reads_the_config_as_meant(tmp_path: Path) -> None:
    text = (put(tmp_path).folder.parent / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 8)
    assert config.default_model_filename == "model.onnx"
    assert config.HasField("dynamic_batching")
    assert config.version_policy.latest.num_versions == 2
    tensors = [(t.name, t.data_type, list(t.dims)) for t in (*config.input, *config.output)]
    assert tensors == [
        ("input_ids", model_config_pb2.TYPE_INT64, [77]),
        ("input_ids_2", model_config_pb2.TYPE_INT64, [77]),
        ("noise", model_config_pb2.TYPE_FP32, [4, 8, 8]),
        ("image", model_config_pb2.TYPE_UINT8, [64, 64, 3]),
    ]


def test_another_config_under_the_same_name_is_refused_with_the_difference(tmp_path: Path) -> None:
    put(tmp_path)
    with pytest.raises(RepositoryError, match="size: 8' there, 'max_batch_size: 4' here"):
        put(tmp_path, config=triton_config("tiny", SIGNATURE, 4))
    assert versions(tmp_path / "tiny") == [1]


def test_configs_are_compared_by_meaning(tmp_path: Path) -> None:
    assert difference("# a comment\n" + CONFIG, CONFIG) is None
    assert difference(CONFIG.replace('"tiny"', '"small"'), CONFIG) == (
        "'name: \"small\"' there, 'name: \"tiny\"' here"
    )
    assert difference(CONFIG.replace("onnxruntime", "python"), CONFIG) is None
    assert difference(CONFIG + "instance_group { count: 2 }", CONFIG) is None
    put(tmp_path)
    (tmp_path / "tiny" / "config.pbtxt").write_text("what: is this")
    with pytest.raises(RepositoryError, match="is not a Triton config"):
        put(tmp_path)


def test_a_folder_that_is_no_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "notes.txt").touch()
    with pytest.raises(RepositoryError, match=r"has no config\.pbtxt: it is not a model's folder"):
        put(tmp_path)
    assert tree(tmp_path) == ["tiny/notes.txt"]
    (tmp_path / "tiny" / "notes.txt").unlink()
    assert put(tmp_path).version == 1


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path)
    before = tree(tmp_path)
    with files_limited_to(10_000), pytest.raises(RepositoryError, match="File too large"):
        put(tmp_path, b"x" * 20_000)
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]
    assert put(tmp_path).version == 2


def test_a_repository_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match=r"nothing was published in .*file"):
        put(tmp_path / "file")


def test_leftovers_of_the_dead_are_removed_and_work_in_progress_is_not(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    inside, beside = repository / f"{PREFIX}dead", tmp_path / f"{PREFIX}models-dead"
    alive, foreign = repository / f"{PREFIX}alive", tmp_path / f"{PREFIX}others-dead"
    for folder in (inside, beside, alive, foreign):
        (folder / "model" / "1").mkdir(parents=True)
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    remove_leftovers(repository)
    assert [p.name for p in repository.iterdir()] == [alive.name]
    assert sorted(p.name for p in tmp_path.iterdir()) == [foreign.name, "models"]
    os.close(lock)
    put(repository)
    assert [p.name for p in repository.iterdir()] == ["tiny"]


def test_publishers_at_the_same_time_get_numbers_of_their_own(tmp_path: Path) -> None:
    together, published = threading.Barrier(6), list[Published]()

    def work(content: bytes) -> None:
        with staging(tmp_path) as staged:
            (staged / "model.onnx").write_bytes(content)
            together.wait()
            facts = describe(SIGNATURE, 8)
            published.append(publish(staged, tmp_path, "tiny", CONFIG, facts))

    threads = [threading.Thread(target=work, args=(b"%d" % i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.version for p in published) == [1, 2, 3, 4, 5, 6]
    assert versions(tmp_path / "tiny") == [1, 2, 3, 4, 5, 6]
    for one in published:
        manifest = check_version(one.folder)
        assert (manifest["version"], manifest["digest"]) == (one.version, one.digest)


def test_only_version_numbers_count_as_versions(tmp_path: Path) -> None:
    for name in ("1", "12", "007", "next", "0"):
        (tmp_path / "tiny" / name).mkdir(parents=True)
    assert versions(tmp_path / "tiny") == [1, 12]
    assert versions(tmp_path / "other") == []


@pytest.mark.parametrize("name", ["", "Shapes", "../x", "a/b", "-a", ".a", "a b", "ä", "a\n"])
def test_a_name_that_is_no_model_name_is_refused(name: str) -> None:
    with pytest.raises(RepositoryError, match=r"the model name is .*; allowed are small letters"):
        check_name(name)
    check_name("shapes-2_b")
