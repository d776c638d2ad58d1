"""`distill verify`: a published version against torch, ONNX Runtime and a Triton server."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from export.errors import ExportError, ParityError, RepositoryError
from export.gate.parity import Limits
from export.gate.published import Request, affordable_rows, check_request, verify_repository
from export.gate.session import open_probe, open_session
from export.gate.unoptimised import scan_levels
from export.gate.version import open_version
from export.repository.manifest import check_version, complete, write_manifest
from export.tasks.subjects import PROMPTS

import faults  # isort: skip
from triton_fake import Triton, running  # isort: skip

FEW = {"rows": 3, "threads": 1}


@pytest.fixture(scope="session")
def repository(run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model for batches of two, so that the gate is quick; read only."""
    folder = tmp_path_factory.mktemp("gate") / "repository"
    shutil.copytree(run.repository, folder)
    rewrite(folder / "tiny" / "1", max_batch=2)
    return folder


def rewrite(version: Path, **changes: object) -> None:
    """Bring the manifest in line with the files that lie there now."""
    manifest = {**json.loads((version / "manifest.json").read_text("utf-8")), **changes}
    write_manifest(complete(manifest, version, "tiny", 1), version)
    check_version(version)


def with_fault(repository: Path, folder: Path, fault: faults.Fault) -> Path:
    """A repository of its own whose graph has the fault, and whose manifest does not betray it."""
    shutil.copytree(repository, folder)
    file = folder / "tiny" / "1" / "model.onnx"
    model = onnx.load(file)
    fault(model)
    onnx.save(model, file)
    rewrite(file.parent)
    return folder


def test_a_good_version_holds_against_torch(
    repository: Path, tiny_student: Path, tmp_path: Path
) -> None:
    lines = list[str]()
    request = Request("torch", tiny_student, json_file=tmp_path / "gate.json", **FEW)
    parity = verify_repository(repository, "tiny", 1, request, report=lines.append)
    assert (parity.level, parity.limits) == ("bitwise", Limits())
    facts = json.loads((tmp_path / "gate.json").read_text("utf-8"))
    assert facts["digest"] == check_version(repository / "tiny" / "1")["digest"]
    assert (facts["compared_with"], facts["level"], facts["faults"]) == ("torch", "bitwise", [])
    assert [b["batch"] for b in facts["batches"]] == [1, 2]
    assert list(facts["batches"][0]["against"]) == ["stock", "torch"]
    assert lines[0].startswith("tiny/1, digest ")
    assert "batch invariance: bitwise" in lines[1]


def test_a_good_version_needs_no_student_against_onnx(repository: Path) -> None:
    said = list[str]()
    parity = verify_repository(repository, request=Request("onnx", **FEW), report=said.append)
    assert parity.level == "bitwise"
    assert list(parity.batches[0].against) == ["onnx"]


def test_another_timestep_passes_onnx_alone_but_not_torch(
    repository: Path, tiny_student: Path, tmp_path: Path
) -> None:
    """What only torch can say: the batch is right, the picture is wrong."""
    wrong = with_fault(repository, tmp_path / "wrong", faults.timestep_wrong)
    quiet = {"report": list[str]().append}
    assert verify_repository(wrong, request=Request("onnx", **FEW), **quiet).level == "bitwise"
    sheet, json_file = tmp_path / "sheet.png", tmp_path / "gate.json"
    request = Request("torch", tiny_student, sheet=sheet, json_file=json_file, **FEW)
    with pytest.raises(ParityError, match="tiny/1: the graph does not draw the student's pictures"):
        verify_repository(wrong, request=request, **quiet)
    facts = json.loads(json_file.read_text("utf-8"))
    assert facts["faults"]
    assert facts["worst"]["max_levels"] > 1
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (faults.rows_swapped, "the difference from the picture alone|the max difference from ONNX"),
        (faults.nan_in_a_row, "at batch 2 .* the max difference from ONNX Runtime"),
        (faults.float16_overflow, "values that are not finite"),
        (faults.nan_by_content, f"the picture of {PROMPTS[2]!r}, seed 2, holds values that are"),
    ],
)
def test_a_fault_of_the_batch_or_of_the_floats_shows_without_a_student(
    repository: Path, tmp_path: Path, fault: faults.Fault, sentence: str
) -> None:
    wrong = with_fault(repository, tmp_path / "wrong", fault)
    with pytest.raises(ParityError, match=sentence):
        verify_repository(wrong, request=Request("onnx", **FEW), report=list[str]().append)


def test_an_engine_is_measured_in_place_of_onnx_runtime(repository: Path) -> None:
    """It may differ by its rounding, in company too; it may not draw another row's picture."""
    session = open_session(repository / "tiny" / "1" / "model.onnx", 1)

    def engine(feeds):
        pictures = session(feeds)
        return np.where((pictures < 255) & (len(pictures) > 1), pictures + 1, pictures).astype("u1")

    quiet = list[str]().append
    loose = Limits(max_levels=2, mean_levels=1, differing=1, invariance_levels=1)
    request = Request("onnx", infer=engine, limits=loose, **FEW)
    assert verify_repository(repository, request=request, report=quiet).level == "within 1 levels"
    back = Request("onnx", infer=lambda feeds: session(feeds)[::-1], **FEW)
    with pytest.raises(ParityError, match="the pictures are not those of the version's graph"):
        verify_repository(repository, request=back, report=quiet)


def test_a_triton_server_is_asked_for_every_batch_size(repository: Path) -> None:
    triton = Triton("tiny", "1", open_session(repository / "tiny" / "1" / "model.onnx", 1))
    with running(triton) as url:
        request = Request("triton", url=url, **FEW)
        parity = verify_repository(repository, request=request, report=list[str]().append)
    assert parity.level == "bitwise"
    assert set(triton.batches) == {1, 2}
    assert parity.limits.invariance_levels > 0  # another runtime may round otherwise


def test_a_triton_server_that_mixes_rows_up_is_refused(repository: Path) -> None:
    session = open_session(repository / "tiny" / "1" / "model.onnx", 1)
    with running(Triton("tiny", "1", lambda feeds: session(feeds)[::-1].copy())) as url:
        request = Request("triton", url=url, **FEW)
        with pytest.raises(ParityError, match="the server does not draw the pictures"):
            verify_repository(repository, request=request, report=list[str]().append)


def test_a_server_that_is_not_there_not_ready_or_fails_is_named(repository: Path) -> None:
    def verify(url: str, version: int = 1) -> None:
        request = Request("triton", url=url, **FEW)
        verify_repository(repository, "tiny", version, request, report=list[str]().append)

    def broken(feeds):
        raise ValueError("out of memory")

    with pytest.raises(ExportError, match=r"no Triton server answers at 127\.0\.0\.1:9"):
        verify("127.0.0.1:9")
    for version, sentence in ((2, "does not hold tiny/1"), (1, "not draw tiny/1: out of memory")):
        triton = Triton("tiny", str(version), broken)
        with running(triton) as url, pytest.raises(ExportError, match=f"{url} .*{sentence}"):
            verify(url)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request("jax"), "--against is 'jax'; allowed are torch, onnx, triton"),
        (Request("torch"), "--against torch needs --student DIR"),
        (Request("onnx", student=Path("s")), "--against onnx takes no --student"),
        (Request("triton"), "--against triton needs --url HOST:PORT"),
        (Request("onnx", url="a:1"), "--against onnx takes no --url"),
        (Request("triton", url="a:1", infer=lambda feeds: None), "it takes no engine"),
        (Request("onnx", rows=1), "--rows is 1; at least 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(request_: Request, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        check_request(request_)


def test_a_version_that_is_not_there_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is not a folder"):
        open_version(tmp_path / "none", None, None)
    with pytest.raises(RepositoryError, match="holds no model 'other'; there are: tiny"):
        open_version(repository, "other", None)
    with pytest.raises(RepositoryError, match="has no version 7; there are: 1"):
        open_version(repository, "tiny", 7)
    shutil.copytree(repository / "tiny", tmp_path / "a")
    shutil.copytree(repository / "tiny", tmp_path / "b")
    with pytest.raises(RepositoryError, match="several models, name one; there are: a, b"):
        open_version(tmp_path, None, None)


def test_a_student_that_the_version_was_not_made_from_is_refused(
    repository: Path, tiny_sdxl: Path
) -> None:
    request = Request("torch", tiny_sdxl, **FEW)
    with pytest.raises(ExportError, match="but tiny/1 was made from"):
        verify_repository(repository, request=request, report=list[str]().append)


def test_a_graph_that_is_cut_short_is_named(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "short")
    file = tmp_path / "short" / "tiny" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RepositoryError, match=r"model\.onnx has 1000 bytes; the manifest says"):
        open_version(tmp_path / "short", None, None)
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot open .*model\.onnx"):
        open_session(file)


def test_rows_follow_the_time_of_a_picture(repository: Path) -> None:
    version = open_version(repository, None, None)
    assert affordable_rows(1e-4, version, 60) == 64
    assert 8 < affordable_rows(0.2, version, 60) < 64
    assert affordable_rows(60, version, 60) == 8


def test_rows_that_are_not_asked_for_are_chosen_by_a_measured_picture(repository: Path) -> None:
    request = Request("onnx", threads=1, budget_s=0)
    parity = verify_repository(repository, request=request, report=list[str]().append)
    assert parity.batches[0].pictures == 8  # the fewest


def test_files_that_cannot_be_written_are_named(repository: Path, tmp_path: Path) -> None:
    for option, key in (("--json", "json_file"), ("the contact sheet", "sheet")):
        request = Request("onnx", **{key: tmp_path / "none" / "file"}, **FEW)
        with pytest.raises(ExportError, match=f"{option} .*file cannot be written: No such file"):
            verify_repository(repository, request=request, report=list[str]().append)


def test_without_its_floats_one_flat_picture_is_enough(repository: Path, cases) -> None:
    flat = cases.torch_pictures.copy()
    flat[3] = 0
    other = type(cases)(cases.size, cases.prompts, cases.seeds, cases.feeds, {"onnx": flat})
    with pytest.raises(ParityError, match="seed 3, is one flat colour"):
        scan_levels("tiny/1", other, None)
    scan_levels("tiny/1", other, open_probe(repository / "tiny" / "1" / "model.onnx", 1))
    black = type(cases)(cases.size, cases.prompts, cases.seeds, cases.feeds, {"onnx": flat * 0})
    with pytest.raises(ParityError, match="all 8 pictures are one flat colour"):
        scan_levels("tiny/1", black, open_probe(repository / "tiny" / "1" / "model.onnx", 1))


def test_a_graph_without_a_clamp_has_no_probe(tmp_path: Path) -> None:
    from onnx.parser import parse_model

    text = "agraph (float[N] x) => (uint8[N] image) { y = Neg (x)  image = Cast <to = 2> (y) }"
    model = parse_model(f'<ir_version: 9, opset_import: ["" : 21]> {text}')
    onnx.save(model, tmp_path / "model.onnx")
    assert open_probe(tmp_path / "model.onnx", 1) is None
