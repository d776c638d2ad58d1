"""Every tensor of a run is where the others are, on a device that is not the CPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from other_device import away_from_the_cpu
from tiny import save_tiny_sdxl
from tiny_classes import save_tiny_edm
from tiny_flow import save_tiny_sd35
from tiny_training import silent, tiny_recipe

from distill.run import distil

SETTINGS = (
    "train.device=meta",
    "train.steps=2",
    "train.diagnose_steps=1",
    "positives.per_prompt=12",
)
CACHED = ("drift.cached_draws=2", "train.ema_device=cpu")


def test_what_would_fail_on_a_gpu_fails_here(monkeypatch: pytest.MonkeyPatch) -> None:
    away = torch.ones(2, 2, device="meta")
    with away_from_the_cpu(monkeypatch):
        assert (away @ away).cpu().sum().item() == 4
        assert away[torch.tensor([0])].shape == (1, 2)
        with pytest.raises(RuntimeError, match="mm takes tensors of the CPU and of the other"):
            away @ torch.ones(2, 2)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@pytest.mark.parametrize(
    ("save", "more"),
    [
        (save_tiny_sdxl, ()),
        (save_tiny_sdxl, CACHED),
        (save_tiny_sdxl, ("student={lora: {rank: 2, alpha: 4, targets: [to_q]}}",)),
        (save_tiny_sd35, ("drift.layers=[transformer_blocks.0]", "drift.pool=1")),
        (save_tiny_edm, ("teacher.guidance_scale=1", "drift.layers=[mid_block]")),
    ],
    ids=["sdxl", "cached", "lora", "sd35", "edm"],
)
def test_a_run_stays_on_its_device_and_resumes_there(
    save: Callable[[Path], Path],
    more: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = save(tmp_path / "teacher")
    recipe = tiny_recipe(tmp_path / "run", teacher, *SETTINGS, *more)
    if save is save_tiny_edm:
        (tmp_path / "run" / "prompts.txt").write_text("0\n1\n3\n")
    with away_from_the_cpu(monkeypatch):
        assert (distil(recipe, silent) / "model_index.json").is_file()
        longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": 3})})
        distil(longer, silent, resume_changed=True)
