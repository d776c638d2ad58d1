"""SD 3 and 3.5 from end to end: saved by distill, exported with T5 and without, served."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from stock_step import stock_picture
from tiny_flow import save_tiny_sd3, save_tiny_sd35

from distill.student import save_student
from distill.teachers.flow import FlowTeacher
from distill.teachers.opening import load_teacher
from export.export import export_student
from export.gate.published import Request, verify_repository
from export.options import Options
from export.repository import triton_config
from export.repository.manifest import check_version
from serve.errors import InvalidParametersError
from serve.generate import generate_file
from serve.model import load_model
from serve.settings import Settings

PROMPT, SEED = "a red circle", 5
INPUTS = {"input_ids": 77, "input_ids_2": 77, "input_ids_3": 256}


class Made(NamedTuple):
    """A teacher, its own weights saved as a student, and the repository with that student."""

    teacher: FlowTeacher
    student: Path
    repository: Path

    @property
    def inputs(self) -> dict[str, int]:
        """The text inputs and how many ids they take."""
        return dict([*INPUTS.items()][: len(self.teacher.encoders)])


@pytest.fixture(scope="module", params=[save_tiny_sd3, save_tiny_sd35], ids=["3", "3.5"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Exported once each; read only."""
    folder = tmp_path_factory.mktemp("sd3")
    teacher = load_teacher(request.param(folder / "teacher"), torch.device("cpu"))
    level = teacher.level(None, None)
    save_student(teacher, teacher.denoiser.state_dict(), level, folder / "student")
    options = Options(max_batch=2)
    export_student(folder / "student", folder / "r", "sd3", options, report=lambda line: None)
    return Made(teacher, folder / "student", folder / "r")


def test_the_gateway_gives_what_the_student_is_trained_as(made: Made, tmp_path: Path) -> None:
    teacher, settings = made.teacher, Settings(repository=made.repository, threads=1)
    with torch.no_grad():
        noise, condition = teacher.noise([SEED]), teacher.encode([PROMPT])
        latent = teacher.one_step(teacher.denoiser, noise, teacher.last_level, condition)
        trained = teacher.decode(latent)[0].numpy()
    file = generate_file(settings, PROMPT, SEED, tmp_path / "a.png")
    served = np.asarray(Image.open(io.BytesIO(file.data))).astype(int)
    absent = {} if "input_ids_3" in made.inputs else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(made.student, **absent)
    for other in (trained, stock_picture(pipeline, PROMPT, SEED)):
        assert np.abs(served - other).max() <= 1


def test_the_version_has_a_tokenizer_and_an_input_for_each_encoder(made: Made) -> None:
    manifest = check_version(made.repository / "sd3" / "1")
    assert [tensor["name"] for tensor in manifest["inputs"]] == [*made.inputs, "noise"]
    lengths = {name: entry["max_length"] for name, entry in manifest["tokenizers"].items()}
    assert lengths == made.inputs
    files = ["tokenizer.json", "tokenizer_2.json", "tokenizer_3.json"][: len(lengths)]
    assert sorted(manifest["files"]) == ["model.onnx", *files]
    assert manifest["gate"]["level"] == "bitwise"
    step = manifest["one_step"]
    assert (step["kind"], step["timestep"]) == ("singlepass", 1000)
    assert step["coefficients"] == {"input_scale": 1.0, "noise": 1.0, "prediction": -1.0}
    assert manifest["decoder"]["shift_factor"] == 0.0609


def test_triton_is_told_of_each_input(made: Made) -> None:
    config = triton_config.parse((made.repository / "sd3" / "config.pbtxt").read_text("utf-8"))
    dims = {tensor.name: [*tensor.dims] for tensor in config.input}
    assert dims == {**{name: [n] for name, n in made.inputs.items()}, "noise": [16, 8, 8]}


def test_it_is_verified_against_torch_and_stock(made: Made) -> None:
    request = Request("torch", made.student, rows=2)
    found = verify_repository(made.repository, request=request, report=lambda line: None)
    assert found.level == "bitwise"


def test_each_tokenizer_has_its_own_limit(made: Made) -> None:
    """Fifty words are within CLIP's 77 tokens; this T5 reads every letter, and takes 256."""
    model, words = load_model(made.repository), "blue " * 52
    if "input_ids_3" in made.inputs:
        with pytest.raises(InvalidParametersError, match=r"is 261 tokens long .* allowed are 256"):
            model.tokenize(words)
    shapes = {name: ids.shape for name, ids in model.tokenize("blue " * 51).items()}
    assert shapes == {name: (n,) for name, n in made.inputs.items()}
