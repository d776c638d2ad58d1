"""From a student directory to a version that plain readers open; a bad one is never published."""

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
from export.export import export_student
from export.gate.session import open_session
from export.graph.precision import Precision
from export.options import Options
from export.repository.manifest import check_version, student_sha256

KEYS = """decoder digest files format gate graph inputs max_batch model one_step output
    pixels_per_latent precision service_ms sizes source task tokenizers version versions"""


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
    assert manifest["one_step"]["timestep"] == 999
    assert manifest["one_step"]["prediction_type"] == "epsilon"
    assert manifest["precision"] == {"text": "float32", "unet": "float32", "vae": "float32"}
    assert list(manifest["service_ms"]) == ["1", "2", "4", "8"]
    assert manifest["tokenizers"]["input_ids_2"] == {"file": "tokenizer_2.json", "max_length": 77}
    assert manifest["gate"] == json.loads(json.dumps(exported.parity.to_json()))
    assert manifest["digest"] == exported.digest
    assert manifest["versions"]["torch"] == torch.__version__


def test_the_manifest_is_sorted_indented_json_that_names_no_path(run, tiny_student: Path) -> None:
    text = (run.exported.folder / "manifest.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert str(tiny_student.parent) not in text
    source = json.loads(text)["source"]
    assert source["student"] == tiny_student.name
    assert source["student_sha256"] == student_sha256(tiny_student)
    assert source["options"] == json.loads(json.dumps(Options().to_json()))


def test_the_report_names_each_stage_and_what_is_left_for_tensorrt(run) -> None:
    text = "\n".join(run.lines)
    for words in ("loaded ", "wrote one graph", "batch invariance: bitwise", "published "):
        assert words in text
    assert "no TensorRT engine was built" in run.lines[-1]
    assert "\n" not in run.lines[-1]
    assert list(run.exported.seconds) == ["load", "reference", "onnx", "gate", "publish"]


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
    def write_another(graph: object, signature: object, file: Path, opset: int) -> None:
        model = onnx.load(run.exported.folder / "model.onnx")
        weight = next(w for w in model.graph.initializer if w.name == "unet.conv_out.weight")
        weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
        onnx.save(model, file)

    monkeypatch.setattr("export.export.write_onnx", write_another)
    with pytest.raises(ParityError, match="does not draw the student's pictures"):
        export_student(tiny_student, tmp_path, "tiny", report=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_sixteen_bits_two_sizes_and_python_are_gated_and_published(
    tiny_student: Path, tmp_path: Path
) -> None:
    half = torch.float16
    options = Options(
        max_batch=2,
        sizes=((64, 64), (96, 64)),
        precision=Precision(text=half, unet=half, vae=half),
        runtime="python",
        keep=1,
    )
    lines: list[str] = []
    exported = export_student(tiny_student, tmp_path, "tiny", options, report=lines.append)
    manifest = check_version(exported.folder)
    assert manifest["sizes"] == ["64x64", "96x64"]
    assert manifest["precision"] == {"text": "float16", "unet": "float16", "vae": "float16"}
    assert manifest["gate"]["limits"]["max_levels"] > 1
    assert "model.py" in manifest["files"]
    assert any(line.startswith("the decoder's largest value is") for line in lines)


def test_bfloat16_is_gated_as_float32_and_leaves_nothing_behind(
    tiny_student: Path, tmp_path: Path
) -> None:
    options = Options(max_batch=2, precision=Precision(unet=torch.bfloat16))
    lines: list[str] = []
    exported = export_student(tiny_student, tmp_path, "tiny", options, report=lines.append)
    assert (
        "warning: ONNX Runtime has no bfloat16 on a CPU; the gate measures it as float32" in lines
    )
    files = sorted(path.name for path in exported.folder.iterdir())
    assert files == ["manifest.json", "model.onnx", "tokenizer.json", "tokenizer_2.json"]
    weights = onnx.load(exported.folder / "model.onnx").graph.initializer
    assert any(weight.data_type == onnx.TensorProto.BFLOAT16 for weight in weights)


def test_without_the_gate_a_version_says_that_nothing_was_measured(
    tiny_student: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    options = Options(max_batch=2, gate=False)
    exported = export_student(tiny_student, tmp_path, "tiny", options, report=lines.append)
    manifest = check_version(exported.folder)
    assert exported.parity is None
    assert manifest["gate"] == {"level": "not measured"}
    assert "service_ms" not in manifest
    assert any("the gate is left out" in line for line in lines)


@pytest.mark.parametrize("max_batch", [0, -1, 64])
def test_an_impossible_max_batch_is_refused_before_any_work(
    tiny_student: Path, tmp_path: Path, max_batch: int
) -> None:
    with pytest.raises(
        ExportError, match=f"max_batch is {max_batch}; it must lie between 1 and 63"
    ):
        export_student(tiny_student, tmp_path / "repository", "tiny", Options(max_batch))
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (Options(keep=0), "keep is 0; it must be at least 1"),
        (Options(runtime="tensorrt"), "runtime is 'tensorrt'; .* `distill engine`"),
        (Options(quantize=True, gate=False), "int8, which is kept only where it is measured"),
        (Options(opset=5), "opset is 5; allowed are 18, 21, 23"),
    ],
)
def test_impossible_options_are_refused(
    tiny_student: Path, tmp_path: Path, options: Options, sentence: str
) -> None:
    with pytest.raises(ExportError, match=sentence):
        export_student(tiny_student, tmp_path / "repository", "tiny", options)
    assert not (tmp_path / "repository").exists()
