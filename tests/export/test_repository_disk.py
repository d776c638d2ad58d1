"""A disk that is full at any point of publishing: nothing half written is ever seen."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from export.errors import RepositoryError
from export.repository.addition import add_engine
from export.repository.manifest import check_version, describe
from export.repository.publish import publish, staging, versions
from export.repository.serving import rollback, served_versions
from export.repository.triton_config import triton_config
from export.repository.workplace import PREFIX, workplace
from export.signature import text_to_image

SIGNATURE = text_to_image(4, 8, 64)
CONFIG = triton_config("tiny", SIGNATURE, 8)

# In a name space of its own, fill a file system of one megabyte by publishing into it.
FILL = """
import subprocess, sys
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", sys.argv[1]], check=True)
sys.path.insert(0, sys.argv[2])
from test_repository_disk import put
from export.errors import RepositoryError
from export.repository.manifest import check_version
from export.repository.publish import versions
repository = Path(sys.argv[1])
try:
    while True:
        put(repository, b"x" * 300_000)
except RepositoryError as error:
    print(error)
print(versions(repository / "tiny"), sorted(path.name for path in repository.iterdir()))
folders = [repository / "tiny" / str(number) for number in versions(repository / "tiny")]
print([check_version(folder)["version"] for folder in folders])
"""


def put(repository: Path, content: bytes = b"graph") -> int:
    with staging(repository) as staged:
        (staged / "model.onnx").write_bytes(content)
        return publish(staged, repository, "tiny", CONFIG, describe(SIGNATURE, 8)).version


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_system_that_fills_up_keeps_every_version_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILL, str(tmp_path), str(Path(__file__).parent)]
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    done = subprocess.run(["unshare", "-Urm", *command], capture_output=True, text=True, check=True)
    sentence, found, whole = done.stdout.splitlines()
    assert sentence == f"nothing was published in {tmp_path}: No space left on device"
    assert (found, whole) == ("[1, 2, 3] ['tiny']", "[1, 2, 3]")


@pytest.mark.parametrize("call", range(6))
def test_wherever_the_disk_fails_readers_see_whole_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The n-th time that something is brought to the disk while version 2 is published."""
    repository = tmp_path / "repository"
    put(repository)
    calls = iter(range(100))
    real = os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: no_space() if next(calls) == call else real(fd))
        with suppress(RepositoryError):
            put(repository)
        assert next(calls) > call, "the disk never failed"
    for number in versions(repository / "tiny"):
        check_version(repository / "tiny" / str(number))
    assert served_versions(repository / "tiny")[-1] in (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]
    assert [path.name for path in repository.iterdir()] == ["tiny"]


def test_a_config_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch) -> None:
    put(tmp_path)
    put(tmp_path)
    config = tmp_path / "tiny" / "config.pbtxt"
    before = config.read_bytes()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RepositoryError, match=r"config\.pbtxt is as it was: No space left"):
        rollback(tmp_path, "tiny")
    assert config.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["1", "2", "config.pbtxt"]


def test_an_engine_that_does_not_fit_leaves_the_version_as_it_was(tmp_path, monkeypatch) -> None:
    put(tmp_path / "repository")
    version, plan = tmp_path / "repository" / "tiny" / "1", tmp_path / "a.plan"
    before = check_version(version)
    plan.write_bytes(b"engine")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RepositoryError, match=r"nothing was added to .*: No space left"):
        add_engine(version, plan, "9.0", {})
    assert check_version(version) == before


def test_versions_are_made_beside_the_repository_or_inside_if_beside_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models"
    with workplace(repository, "failed") as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith(f"{PREFIX}models-")
        assert not any(repository.iterdir())
    real = Path.rename

    def across(self: Path, target: Path) -> Path:
        if self.name.endswith(".probe"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", across)
    with workplace(repository, "failed") as folder:
        assert folder.parent == repository
        assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert not any(repository.iterdir())
