"""The bank of teacher samples: what is in it, how it resumes, and when it is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_training import CPU, PROMPTS, different_files, silent, tiny_recipe

from distill.bank import bank_samples
from distill.data import DataError
from distill.prompts import read_prompts
from distill.recipe import Recipe
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher

MANY = tuple(f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in "abc")


@pytest.fixture
def sharded(tiny_sdxl: Path, tmp_path: Path) -> Recipe:
    """Nine prompts of four samples in batches of two: three shards of four prompts or fewer."""
    recipe = tiny_recipe(tmp_path, tiny_sdxl, "positives.per_prompt=4", "positives.batch=2")
    (tmp_path / "prompts.txt").write_text("\n".join(MANY), "utf-8")
    return recipe


def shards(recipe: Recipe) -> list[str]:
    return sorted(path.name for path in (recipe.run / "bank").iterdir() if path.is_file())


def test_prompts_are_lines_without_blanks_and_repetitions(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("  a red circle \n\nblue\na red circle\n", "utf-8")
    assert read_prompts(path) == ("a red circle", "blue")


def test_prompts_that_are_missing_empty_or_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    with pytest.raises(DataError, match=r"positives\.prompts: .*prompts\.txt does not exist"):
        read_prompts(path)
    path.write_text("\n  \n", "utf-8")
    with pytest.raises(DataError, match=r"prompts\.txt is empty, so the prompt bank would be too"):
        read_prompts(path)
    path.write_bytes(b"red\xff")
    with pytest.raises(DataError, match=r"prompts\.txt is not UTF-8"):
        read_prompts(path)


def test_a_sample_is_the_teachers_for_its_prompt_and_seed(
    teacher: SdxlTeacher, recipe: Recipe
) -> None:
    samples = bank_samples(teacher, recipe, silent)
    assert samples.prompts == PROMPTS
    assert [members.tolist() for members in samples.members] == [
        list(range(start, start + 10)) for start in (0, 10, 20)
    ]
    alone = teacher.sample(teacher.encode(PROMPTS[1:2]), [17], steps=2, guidance_scale=2.0)
    assert torch.allclose(samples.latents[torch.tensor(17)], alone[0], atol=1e-5)
    assert torch.pdist(samples.latents[:].flatten(1)).min() > 0.1  # no two seeds are alike


def test_the_batch_size_does_not_change_the_samples(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    banks = [
        bank_samples(
            teacher, tiny_recipe(tmp_path / batch, tiny_sdxl, f"positives.batch={batch}"), silent
        )
        for batch in ("1", "7", "30")
    ]
    for other in banks[1:]:
        assert torch.allclose(banks[0].latents[:], other.latents[:], atol=1e-5)


def test_a_lost_shard_is_made_again_to_the_bit(
    teacher: SdxlTeacher, sharded: Recipe, tmp_path: Path
) -> None:
    before = bank_samples(teacher, sharded, silent)
    assert shards(sharded) == ["bank.json", *(f"shard-0000{n}.safetensors" for n in range(3))]
    copy = shutil.copytree(sharded.run / "bank", tmp_path / "copy")
    (sharded.run / "bank" / "shard-00001.safetensors").unlink()
    (sharded.run / "bank" / "shard-00001.partial").write_bytes(b"half a shard")
    again = bank_samples(teacher, sharded, silent)
    assert torch.equal(again.latents[:], before.latents[:])
    assert different_files(sharded.run / "bank", copy) == []


class StopsAt(SdxlTeacher):
    """A teacher whose n-th sampling never ends well."""

    left: int

    def sample(self, *args: object, **kwargs: object) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().sample(*args, **kwargs)  # type: ignore[arg-type]


def test_an_interrupted_making_leaves_whole_shards_and_goes_on(
    teacher: SdxlTeacher, sharded: Recipe
) -> None:
    stopped = StopsAt(teacher.pipe, CPU)
    stopped.left = 11  # batches of two: the first shard has eight of them
    with pytest.raises(KeyboardInterrupt):
        bank_samples(stopped, sharded, silent)
    assert shards(sharded) == ["bank.json", "shard-00000.safetensors"]
    stopped.left = 10  # what is left to do, and no more
    lines: list[str] = []
    samples = bank_samples(stopped, sharded, lines.append)
    assert stopped.left == 0
    assert samples.latents[:].shape == (36, 4, 8, 8)
    assert lines == [f"bank {sharded.run / 'bank'}: 9 prompts, 4 teacher samples each"]
    bank_samples(stopped, sharded, silent)  # a whole bank asks the teacher for nothing


def test_a_broken_shard_is_named(teacher: SdxlTeacher, sharded: Recipe) -> None:
    bank_samples(teacher, sharded, silent)
    path = sharded.run / "bank" / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"shard .*shard-00002\S* is broken .*; delete it"):
        bank_samples(teacher, sharded, silent)


def double_denoiser(teacher: SdxlTeacher) -> None:
    teacher.pipe.unet.conv_in.weight.mul_(2)


def double_text_encoder(teacher: SdxlTeacher) -> None:
    next(teacher.pipe.text_encoder.parameters()).mul_(2)


def change_schedule(teacher: SdxlTeacher) -> None:
    teacher.pipe.scheduler.register_to_config(beta_end=0.02)


@pytest.mark.parametrize("change", [double_denoiser, double_text_encoder, change_schedule])
def test_the_bank_of_another_teacher_is_refused(
    tiny_sdxl: Path, recipe: Recipe, change: Callable[[SdxlTeacher], None]
) -> None:
    other = load_teacher(tiny_sdxl, CPU)
    bank_samples(other, recipe, silent)
    change(other)
    with pytest.raises(DataError) as error:
        bank_samples(other, recipe, silent)
    assert str(error.value) == (
        f"bank {recipe.run / 'bank'} was made with another teacher_sha256;"
        " choose another run folder, or delete the bank"
    )


def test_a_bank_of_other_prompts_and_guidance_is_refused_by_name(
    teacher: SdxlTeacher, recipe: Recipe, tiny_sdxl: Path
) -> None:
    bank_samples(teacher, recipe, silent)
    folder = recipe.run.parent
    other = tiny_recipe(folder, tiny_sdxl, "teacher.guidance_scale=3")
    (folder / "prompts.txt").write_text("something else", "utf-8")
    with pytest.raises(DataError, match="made with another prompts_sha256, guidance_scale;"):
        bank_samples(teacher, other, silent)


def test_a_bank_whose_facts_are_torn_is_named(teacher: SdxlTeacher, recipe: Recipe) -> None:
    (recipe.run / "bank").mkdir(parents=True)
    (recipe.run / "bank" / "bank.json").write_text('{"teacher', "utf-8")
    with pytest.raises(DataError, match=r"bank\.json is broken .*; delete "):
        bank_samples(teacher, recipe, silent)
