"""The scripts that trained the shapes teacher: they run, they are seeded, they resume."""

import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.numpy import load_file


@pytest.fixture(scope="module")
def vae(shapes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the VAE."""
    out = tmp_path_factory.mktemp("vae") / "vae"
    script(shapes, "train_vae", "--out", out, "--steps", 2, "--batch", 2)
    return out


def script(shapes, name: str, *arguments: object) -> None:
    """Runs one of the scripts in this process."""
    import importlib

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        importlib.import_module(name).main()


def denoiser(shapes, vae: Path, out: Path, steps: int, **options: object) -> dict[str, np.ndarray]:
    """Trains to a step; the weights of the saved teacher's UNet."""
    more = [part for name, value in options.items() for part in (f"--{name}", value)]
    small = ["--pictures", 24, "--batch", 4, "--steps", steps]
    script(shapes, "train_denoiser", "--vae", vae, "--out", out, *small, *more)
    return load_file(out / "teacher" / "unet" / "diffusion_pytorch_model.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_the_vae_keeps_its_latents_while_its_decoder_is_sharpened(
    shapes, vae: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sharp"
    script(shapes, "train_vae", "--sharpen", vae, "--out", out, "--steps", 1, "--batch", 2)
    before, after = (
        load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (vae, out)
    )
    moved = {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"decoder", "post_quant_conv"}
    factors = [AutoencoderKL.from_pretrained(f).config.scaling_factor for f in (vae, out)]
    assert factors[0] == factors[1] != 0.18215  # measured, not the default of the class


def test_the_denoiser_is_seeded_and_a_finished_run_is_left_as_it_is(
    shapes, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = denoiser(shapes, vae, tmp_path / "a", 2)
    assert same(first, denoiser(shapes, vae, tmp_path / "b", 2))
    assert not same(first, denoiser(shapes, vae, tmp_path / "c", 2, seed=1))
    capsys.readouterr()
    assert same(first, denoiser(shapes, vae, tmp_path / "a", 2))
    assert "resumed at step 2" in capsys.readouterr().out


def test_the_saved_teacher_is_a_stock_pipeline_with_the_sharper_decoder(
    shapes, vae: Path, tmp_path: Path
) -> None:
    denoiser(shapes, vae, tmp_path, 1, decoder=vae)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "teacher", local_files_only=True)
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == 64
    parts = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert {str(part.dtype) for part in parts} == {"torch.float32"}
    assert str(tmp_path) not in "".join(
        path.read_text("utf-8") for path in (tmp_path / "teacher").rglob("*.json")
    )
    words = "a small red circle on the left and a large blue square at the bottom"
    assert len(pipe.tokenizer(words).input_ids) == len(words.split()) + 2  # a token a word
