"""An engine of the tiny student into its repository: measured first, and refused if it is wrong."""

import json
import shutil
from pathlib import Path

import pytest
from tensorrt_fake import FakeTensorrt
from tensorrt_fake_engine import Stream

from export.engine.facts import EngineFacts, EngineOptions
from export.engine.gpu import Gpu
from export.engine.publish import publish_engine
from export.errors import EngineError, ParityError
from export.gate.published import Request
from export.repository.manifest import check_version

GPU = Gpu("NVIDIA H100", "570", "9.0", 80 << 30)


@pytest.fixture
def repository(tiny_export, tmp_path: Path) -> Path:
    """A copy of the tiny student's repository, with the same graph as version 2 too."""
    copy = tmp_path / "repository"
    shutil.copytree(tiny_export.repository, copy)
    shutil.copytree(copy / "tiny" / "1", copy / "tiny" / "2")
    manifest = json.loads((copy / "tiny" / "2" / "manifest.json").read_text("utf-8"))
    (copy / "tiny" / "2" / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    return copy


def add(repository: Path, version: int, fails: str = "", **options) -> EngineFacts:
    trt = FakeTensorrt("11.4", fails)
    settings = {
        "opt_batch": 2,
        "request": Request(rows=8, threads=1),
        "report": [].append,
        "gpu": GPU,
        "stream": Stream(),
        **options,
    }
    return publish_engine(repository, "tiny", version, trt=trt, **settings)


def test_a_measured_engine_is_part_of_its_version(repository: Path) -> None:
    facts = add(repository, 1)
    manifest = check_version(repository / "tiny" / "1")
    engine = manifest["engines"]["9.0"]
    assert engine["gate"]["level"] == "bitwise"
    assert {"64x64"} == {batch["size"] for batch in engine["gate"]["batches"]}
    assert manifest["files"]["model.sm90.plan"]["sha256"] == facts.sha256
    del engine["gate"]
    assert EngineFacts.from_json(engine).profiles == facts.profiles
    assert not any(path.name.startswith(".publish") for path in repository.iterdir())


def test_an_engine_that_mixes_rows_up_is_never_added(repository: Path) -> None:
    before = check_version(repository / "tiny" / "1")
    with pytest.raises(ParityError, match="the pictures are not those of the version's graph"):
        add(repository, 1, fails="rows")
    assert check_version(repository / "tiny" / "1") == before
    assert not any(path.name.startswith(".publish") for path in repository.iterdir())


def test_another_version_s_engine_takes_the_new_weights(repository: Path) -> None:
    add(repository, 1, options=EngineOptions(refit=True))
    facts = add(repository, 2, refit_from=1)
    assert facts.options.refit
    assert check_version(repository / "tiny" / "2")["engines"]["9.0"]["gate"]["level"] == "bitwise"


def test_without_an_engine_to_refit_it_is_said_which_there_are(repository: Path) -> None:
    with pytest.raises(EngineError, match=r"tiny/1 has no engine .* 9\.0 to refit; .* none"):
        add(repository, 2, refit_from=1)


def test_versions_of_other_batches_do_not_share_an_engine(repository: Path) -> None:
    file = repository / "tiny" / "2" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "max_batch": 3}))
    with pytest.raises(EngineError, match="tiny/1 and tiny/2 differ in sizes or max_batch"):
        add(repository, 2, refit_from=1)


def test_an_engine_without_weights_is_not_added(repository: Path) -> None:
    with pytest.raises(EngineError, match="strip_weights gives an engine without weights"):
        add(repository, 1, options=EngineOptions(strip_weights=True))
