"""`describe`: what lies there, in words, for whole things and for broken ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.errors import ExportError, StudentError
from export.repository.addition import add_engine
from export.repository.describe import describe
from export.repository.describe_student import size_text
from export.repository.safetensors_header import Weights, read_weights
from export.repository.serving import rollback

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "examples" / "shapes" / "teacher"
SHIPPED = ROOT / "model_repository"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The shipped model as versions 1 and 2."""
    for number in (1, 2):
        folder = tmp_path / "shapes" / str(number)
        shutil.copytree(SHIPPED / "shapes" / "1", folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "version": number}))
    shutil.copy(SHIPPED / "shapes" / "config.pbtxt", tmp_path / "shapes")
    return tmp_path


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TEACHER, tmp_path / "pipeline"))


def test_a_pipeline_is_its_parts_its_picture_and_its_step() -> None:
    lines = describe(TEACHER).splitlines()
    assert lines[0].endswith("teacher: a diffusers pipeline, StableDiffusionXLPipeline")
    assert "  picture         64x64 px, latents 4x8x8" in lines
    assert "  unet            2,610,468 parameters, float16, 5.2 MB" in lines
    assert "  in all          3,491,155 parameters, float16, 7.0 MB" in lines
    assert lines[2].endswith(
        "not one of this project's: EulerDiscreteScheduler, leading, predicts epsilon"
    )
    assert lines[-1].split() == ["whole", "yes"]


def test_a_students_step_is_read_from_its_scheduler(pipeline: Path) -> None:
    file = pipeline / "scheduler" / "scheduler_config.json"
    step = {"_class_name": "DDIMScheduler", "timestep_spacing": "leading", "steps_offset": 700}
    file.write_text(json.dumps({**step, "set_alpha_to_one": True, "prediction_type": "sample"}))
    assert "timestep 700, predicts sample (DDIMScheduler)" in describe(pipeline)
    shutil.rmtree(file.parent)
    text = describe(pipeline)
    assert "one step        not said: there is no scheduler" in text
    assert "whole           no: the folder scheduler is missing" in text


def test_weights_that_are_cut_short_or_missing_are_named(pipeline: Path) -> None:
    weights = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    config = pipeline / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": [8, 8]}))
    index = pipeline / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    text = describe(pipeline)
    assert "picture         sample_size [8, 8] in the unet's config" in text
    assert "it is cut short; " in text or "it is cut short" in text
    assert "one.safetensors is missing, but diffusion_pytorch_model.safetensors.index.json" in text


def test_parameters_are_counted_by_type_over_several_files(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, tmp_path / "a")
    save_file({"c": np.zeros((2, 2), np.float32), "d": np.zeros((), np.int8)}, tmp_path / "b")
    both = read_weights(tmp_path / "a") + read_weights(tmp_path / "b")
    assert both.parameters == {"float32": 16, "float16": 5, "I8": 1}
    assert both.total == 22
    assert both.bytes == sum((tmp_path / name).stat().st_size for name in "ab")
    assert read_weights(tmp_path / "a") != Weights({}, 0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cut short in its header"),
        (b"\xff" * 40, "cut short in its header"),
        (b"\x04" + bytes(7) + b"nope", "has no safetensors header"),
        (b"\x02" + bytes(7) + b"[]", "has no safetensors header"),
    ],
)
def test_what_is_no_safetensors_file_is_said(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(StudentError, match=sentence):
        read_weights(tmp_path / "weights")


def test_a_repository_is_its_models_and_their_versions(repository: Path) -> None:
    lines = describe(repository).splitlines()
    assert lines[0].endswith("a model repository, 1 model")
    assert lines[1] == "shapes: served by onnxruntime, batches up to 8; serves 1, 2 (the newest)"
    assert lines[2].startswith("  version 1   ")
    digest = json.loads((repository / "shapes/1/manifest.json").read_text())["digest"][:12]
    assert lines[2].endswith(f", {digest}, 13.1 MB, 64x64, gate: bitwise, whole")
    rollback(repository, "shapes")
    assert "serves 1 (pinned)" in describe(repository / "shapes")
    shutil.copytree(repository / "shapes", repository / "other")
    assert describe(repository).startswith(f"{repository}: a model repository, 2 models\nother: ")


def test_what_is_wrong_with_a_version_or_its_config_is_said(repository: Path) -> None:
    model = repository / "shapes"
    (model / "2" / "tokenizer.json").unlink()
    (model / "1" / "manifest.json").unlink()
    config = model / "config.pbtxt"
    config.write_text(config.read_text().replace("latest", "all {} what"))
    assert "is not a Triton config" in describe(model)
    config.write_text("version_policy { specific { versions: 9 } }")
    lines = describe(model).splitlines()
    assert lines[0].endswith("config.pbtxt pins 9; the folder holds 1, 2")
    assert "not whole: " in lines[1]
    assert "has no manifest.json" in lines[1]
    assert "not whole: " in lines[2]
    assert "tokenizer.json is missing" in lines[2]
    config.unlink()
    assert "shapes: there is no config.pbtxt" in describe(repository)


def test_a_version_is_everything_its_manifest_says(repository: Path, tmp_path: Path) -> None:
    version, plan = repository / "shapes" / "2", tmp_path / "model.sm90.plan"
    plan.write_bytes(b"engine")
    add_engine(version, plan, "9.0", {"gpu": "NVIDIA H200", "tensorrt": "10.16"})
    file = version / "manifest.json"
    step = {"kind": "dmd2", "timestep": 399, "prediction_type": "epsilon"}
    changed = {
        "one_step": {**step, "coefficients": {"noise": 1.5, "prediction": -1.0}},
        "precision": {"unet": "float16", "vae": "bfloat16"},
        "gate": {"level": "within 2 levels"},
        "service_ms": {"1": 12.5},
        "decoder": {},
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    text = describe(version)
    for line in (
        "shapes/2: text-to-image",
        "dmd2: timestep 399, predicts epsilon, noise 1.5, prediction -1",
        "unet float16, vae bfloat16",
        "within 2 levels",
        "1 12.5",
        "model.sm90.plan, 6 bytes",
        "9.0: model.sm90.plan, NVIDIA H200, TensorRT 10.16",
        "  files           whole",
    ):
        assert line in text
    assert "decoder" not in text
    file.write_text(json.dumps({**json.loads(file.read_text()), "one_step": {}}))
    assert "one step" not in describe(version)


def test_what_is_neither_is_refused_with_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nowhere is not a directory; it must be a student's"):
        describe(tmp_path / "nowhere")
    with pytest.raises(ExportError, match=r"is neither a student's directory \(model_index.json\)"):
        describe(tmp_path)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(StudentError, match=r"model_index\.json is no JSON object"):
        describe(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(StudentError, match=r"model_index\.json cannot be read"):
        describe(tmp_path)


def test_lengths_are_told_in_the_unit_that_fits() -> None:
    assert [size_text(n) for n in (7, 2500, 3_200_000, 6_860_000_000)] == [
        "7 bytes",
        "2.5 kB",
        "3.2 MB",
        "6.9 GB",
    ]
