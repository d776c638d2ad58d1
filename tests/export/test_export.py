"""From a student directory to a version that plain readers open; a bad one is never published."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from export.errors import ExportError, ParityError
from export.export import export_student, find_published, student_sha256
from export.manifest import check_version, sha256_of
from export.session import open_session

KEYS = """digest files format graph inputs max_batch model one_step output parity
    pixels_per_latent sizes source task tokenizers version versions"""


def test_the_version_is_whole_and_its_manifest_has_the_documented_shape(run) -> None:
    exported = run.exported
    manifest = check_version(exported.folder)
    assert list(manifest) == KEYS.split()
    assert (manifest["format"], manifest["model"], manifest["version"]) == (1, "tiny", 1)
    assert sorted(manifest["files"]) == ["model.onnx", "tokenizer.json", "tokenizer_2.json"]
    assert manifest["inputs"][2] == {
        "name": "noise",
        "dtype": "float32",
        "shape": [None, 4, 8, 8],
    }
    assert manifest["output"] == {"name": "image", "dtype": "uint8", "shape": [None, 64, 64, 3]}
    assert (manifest["sizes"], manifest["max_batch"]) == (["64x64"], 8)
    assert manifest["one_step"] == {"timestep": 999, "prediction_type": "epsilon"}
    assert manifest["tokenizers"]["input_ids_2"] == {"file": "tokenizer_2.json", "max_length": 77}
    assert manifest["parity"] == exported.parity.to_json()
    assert manifest["digest"] == exported.digest
    assert manifest["versions"]["torch"] == torch.__version__


def test_the_manifest_is_sorted_indented_json_that_names_no_path(run, tiny_student: Path) -> None:
    text = (run.exported.folder / "manifest.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert str(tiny_student.parent) not in text
    source = json.loads(text)["source"]
    digest = student_sha256(tiny_student)
    assert source == {"student": tiny_student.name, "student_sha256": digest}


def test_the_report_names_each_stage_and_what_is_left_for_tensorrt(run) -> None:
    text = "\n".join(run.lines)
    for words in ("loaded ", "wrote one graph", "batch invariance: bitwise", "published "):
        assert words in text
    assert "no TensorRT engine was built" in run.lines[-1]
    assert "\n" not in run.lines[-1]
    assert list(run.exported.seconds) == ["load", "reference", "onnx", "parity", "publish"]


def test_plain_readers_draw_the_picture_of_stock_diffusers(run, tiny_student: Path) -> None:
    """Only `tokenizers` and ONNX Runtime on one side, only diffusers on the other."""
    folder, prompt = run.exported.folder, "a blue square on the right"
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(77))
    ids = [Tokenizer.from_file(str(folder / f"{n}.json")) for n in ("tokenizer", "tokenizer_2")]
    feeds = {
        "input_ids": np.array([ids[0].encode(prompt).ids]),
        "input_ids_2": np.array([ids[1].encode(prompt).ids]),
        "noise": noise.numpy(),
    }
    picture = open_session(folder / "model.onnx")(feeds)
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_student)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(prompt, latents=noise, num_inference_steps=1, guidance_scale=0.0).images[0]
    gap = np.abs(picture[0].astype(int) - np.asarray(stock))
    assert gap.max() <= 1
    assert gap.mean() < 0.01


def test_the_same_student_again_is_version_2_with_the_same_bytes(
    run, tiny_student: Path, tmp_path: Path
) -> None:
    repository = shutil.copytree(run.repository, tmp_path / "repository")
    again = export_student(tiny_student, repository, "tiny", report=lambda line: None)
    assert again.version == 2
    assert again.digest == run.exported.digest
    first, second = run.exported.folder / "model.onnx", again.folder / "model.onnx"
    assert first.read_bytes() == second.read_bytes()


def test_a_student_that_draws_nan_is_never_published(tiny_student: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_student, tmp_path / "broken")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"][0] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ParityError, match="not finite"):
        export_student(broken, tmp_path / "repository", "tiny", report=lambda line: None)
    assert not (tmp_path / "repository").exists()


def test_a_graph_that_fails_the_gate_is_never_published(
    run, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(graph: object, signature: object, file: Path) -> None:
        model = onnx.load(run.exported.folder / "model.onnx")
        weight = next(w for w in model.graph.initializer if w.name == "unet.conv_out.weight")
        weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
        onnx.save(model, file)

    monkeypatch.setattr("export.export.write_onnx", write_another)
    with pytest.raises(ParityError, match="does not draw the student's pictures"):
        export_student(tiny_student, tmp_path, "tiny", report=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_student_that_lies_in_the_repository_is_found(run, tiny_student: Path) -> None:
    found = find_published(tiny_student, run.repository, "tiny", max_batch=8)
    assert found == run.exported.folder


def test_the_newest_version_that_is_whole_is_found(run, tiny_student: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(run.repository, tmp_path / "repository")
    for number in ("2", "10", "11"):
        shutil.copytree(repository / "tiny" / "1", repository / "tiny" / number)
    (repository / "tiny" / "11" / "model.onnx").unlink()
    found = find_published(tiny_student, repository, "tiny", max_batch=8)
    assert found == repository / "tiny" / "10"


def test_another_student_batch_model_or_place_is_not_found(
    run, tiny_student: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    assert find_published(tiny_sdxl, run.repository, "tiny", max_batch=8) is None
    assert find_published(tiny_student, run.repository, "tiny", max_batch=4) is None
    assert find_published(tiny_student, run.repository, "other", max_batch=8) is None
    assert find_published(tiny_student, tmp_path, "tiny", max_batch=8) is None
    assert find_published(tmp_path / "none", run.repository, "tiny", max_batch=8) is None


@pytest.mark.parametrize("max_batch", [0, -1, 64])
def test_an_impossible_max_batch_is_refused_before_any_work(
    tiny_student: Path, tmp_path: Path, max_batch: int
) -> None:
    with pytest.raises(
        ExportError, match=f"max_batch is {max_batch}; it must lie between 1 and 63"
    ):
        export_student(tiny_student, tmp_path / "repository", "tiny", max_batch=max_batch)
    assert not (tmp_path / "repository").exists()


def test_the_digest_of_a_student_is_that_of_sha256sum_over_its_files(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for name in ("unet/a.safetensors", "model_index.json"):
        (tmp_path / name).write_text(name)
    lines = "".join(
        f"{sha256_of(tmp_path / name)}  {name}\n"
        for name in ("model_index.json", "unet/a.safetensors")
    )
    assert student_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
