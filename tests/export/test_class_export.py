"""A class-conditional student from its directory to a version, and what stands in the version."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from diffusers import ConsistencyModelPipeline
from torch import Generator, randn

from export.errors import ExportError
from export.export import export_student
from export.gate.published import Request, verify_repository
from export.model.foreign import Source
from export.options import Options
from export.origin import find_published
from export.repository import triton_config
from export.repository.addition import serve_with
from export.repository.describe import describe
from export.repository.manifest import check_version, signature_of
from export.signature import class_to_image
from export.tasks.subjects import classes, subjects_of

KEYS = """classes digest files format gate graph inputs max_batch model one_step output
    pixels_per_latent precision service_ms sizes source task version versions"""


def test_the_manifest_says_classes_and_no_tokenizers(class_export) -> None:
    manifest = check_version(class_export.exported.folder)
    assert sorted(manifest) == KEYS.split()
    assert (manifest["format"], manifest["task"]) == (1, "class-to-image")
    assert manifest["classes"] == {"count": 4, "names": ["red", "blue", "green", "small dog"]}
    assert list(manifest["files"]) == ["model.onnx"]
    assert manifest["inputs"] == [
        {"name": "class_labels", "dtype": "int64", "shape": [None]},
        {"name": "noise", "dtype": "float32", "shape": [None, 3, 16, 16]},
    ]
    assert (manifest["sizes"], manifest["pixels_per_latent"]) == (["16x16"], 1)
    assert manifest["precision"] == {"unet": "float32"}
    assert manifest["one_step"]["timestep"] == pytest.approx(250 * np.log(80))
    assert signature_of(manifest) == class_to_image(3, 16)


def test_the_gate_drew_every_batch_size_against_torch_and_stock_diffusers(class_export) -> None:
    parity = class_export.exported.parity
    assert [batch.batch for batch in parity.batches] == list(range(1, 9))
    assert all(f.max_levels <= 1 for b in parity.batches for f in b.against.values())
    assert parity.level == "bitwise"


def test_plain_readers_draw_the_picture_of_stock_diffusers(class_export, class_student) -> None:
    """Only ONNX Runtime on one side, only diffusers on the other."""
    noise = randn(1, 3, 16, 16, generator=Generator().manual_seed(5))
    session = onnxruntime.InferenceSession(class_export.exported.folder / "model.onnx")
    feeds = {"class_labels": np.array([3], np.int64), "noise": noise.numpy()}
    (pictures,) = session.run(None, feeds)
    pipeline = ConsistencyModelPipeline.from_pretrained(class_student)
    stock = pipeline(class_labels=[3], generator=Generator().manual_seed(5)).images[0]
    assert np.abs(pictures[0].astype(int) - np.asarray(stock)).max() <= 1


def test_it_is_verified_again_by_onnx_and_by_torch(class_export, class_student, tmp_path) -> None:
    silent = {"report": lambda line: None}
    found = verify_repository(class_export.repository, request=Request("onnx", rows=4), **silent)
    assert found.level == "bitwise"
    asked = Request("torch", class_student, rows=4, sheet=tmp_path / "worst.png")
    verify_repository(class_export.repository, request=asked, **silent)
    assert (tmp_path / "worst.png").stat().st_size > 0


def test_inspect_says_classes_of_the_student_and_of_the_version(class_export, class_student):
    text = describe(class_export.exported.folder)
    assert text.startswith("edm/1: class-to-image\n")
    assert re.search(r"classes +4, 'red' to 'small dog'\n", text)
    assert "consistency: timestep 1096, predicts preconditioned, input_scale" in text
    text = describe(class_student)
    assert re.search(r"picture +16x16 px of 4 classes\n", text)
    assert re.search(r"one step +sigma 80.0 \(CMStochasticIterativeScheduler\)\n", text)


def test_the_same_student_is_found_again(class_export, class_student) -> None:
    found = find_published(Source(class_student), class_export.repository, "edm", Options())
    assert found == class_export.exported.folder


@pytest.mark.parametrize("runtime", ["onnxruntime", "python"])
def test_triton_is_told_of_one_number_a_picture(class_export, tmp_path, runtime) -> None:
    text = triton_config.triton_config("edm", class_to_image(3, 16), 4, runtime)
    config = triton_config.parse(text)
    labels, noise = config.input
    assert ([*labels.dims], labels.HasField("reshape"), [*labels.reshape.shape]) == ([1], True, [])
    assert ([*noise.dims], noise.HasField("reshape")) == ([3, 16, 16], False)
    sample = config.model_warmup[0].inputs["class_labels"]
    assert ([*sample.dims], sample.zero_data) == ([1], True)


def test_a_tensorrt_config_records_cuda_graphs_of_the_engines_own_shapes() -> None:
    engines = {"9.0": "model.sm90.plan"}
    text = triton_config.triton_config("edm", class_to_image(3, 16), 2, "tensorrt", engines=engines)
    specs = triton_config.parse(text).optimization.cuda.graph_spec
    assert [spec.batch_size for spec in specs] == [1, 2]
    assert [*specs[0].input["class_labels"].dim] == []
    assert [*specs[0].input["noise"].dim] == [3, 16, 16]


def test_a_text_model_of_the_same_name_is_not_replaced(class_student, run, tmp_path) -> None:
    repository = shutil.copytree(run.repository, tmp_path / "repository")
    options = Options(gate=False)
    with pytest.raises(ExportError, match=r"exists with another config\.pbtxt"):
        export_student(class_student, repository, "tiny", options, report=lambda line: None)


def test_many_classes_are_asked_for_from_end_to_end() -> None:
    texts = classes(1000).texts
    assert texts[:3] == ("0", "999", "67")
    assert len(texts) == 16
    assert classes(1).texts == ("0",)
    assert subjects_of(Path(), {"classes": {"count": 3}}).texts == ("0", "2", "1")
    labels = classes(3).encode(["2", "0"])["class_labels"]
    assert (labels.tolist(), labels.dtype) == ([2, 0], np.int64)


def test_the_python_back_end_is_configured_for_it(class_export, tmp_path) -> None:
    repository = shutil.copytree(class_export.repository, tmp_path / "repository")
    before = json.loads((class_export.exported.folder / "manifest.json").read_text("utf-8"))
    assert serve_with(repository, "edm", "python") == before["version"]
    assert (repository / "edm" / "1" / "model.py").is_file()
