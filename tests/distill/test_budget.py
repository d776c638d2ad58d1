"""The budget against real runs: FLOPs and bytes of the tiny SDXL and of the shapes teacher."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from picture_folders import write_pictures
from tiny_training import tiny_recipe, tiny_samples
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from distill.budget import Budget, Part, count, dry_run, report, state_bytes, verdict
from distill.cache_cost import cache_cost, samples_of
from distill.feature_cache import open_feature_cache
from distill.features import FeatureExtractor
from distill.footprint import Alive, as_on_gpu, counting_flops
from distill.losses import tfd_loss
from distill.optimizer import make_optimizer
from distill.outline import open_outline
from distill.recipe import Dataset, Positives, Recipe
from distill.shards import open_shard
from distill.step import Randomness, features, generate, micro_batch, step_sigma
from distill.student import make_student
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import Teacher, TeacherError

CPU = torch.device("cpu")
SHAPES = Path(__file__).parents[2] / "examples" / "shapes" / "teacher"


@pytest.fixture(scope="module", params=["tiny", "shapes"])
def recipe(
    request: pytest.FixtureRequest, tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    folder = tmp_path_factory.mktemp("budget")
    if request.param == "tiny":
        return tiny_recipe(folder, tiny_sdxl)
    return tiny_recipe(folder, SHAPES, "drift.layers=[mid_block]", "drift.pool=1")


@pytest.fixture(scope="module")
def budget(recipe: Recipe) -> Budget:
    return count(recipe)


@pytest.fixture(scope="module")
def tiny(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return tiny_recipe(tmp_path_factory.mktemp("tiny-budget"), tiny_sdxl)


@pytest.fixture(scope="module")
def plain(tiny: Recipe) -> Budget:
    return count(tiny)


def trained_by(recipe: Recipe, **settings: object) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})


def one_micro_batch(teacher: Teacher, student: nn.Module, recipe: Recipe) -> Tensor:
    """The loss on random latents, by the pieces of `distill.step`."""
    drift, chance = recipe.drift, Randomness.of(0, 0, 0)
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    conditions = teacher.encode([str(i) for i in range(drift.groups)])
    x = generate(teacher, student, conditions, recipe, chance)
    sigma = step_sigma(drift, chance)
    own = features(teacher, extractor, x, conditions, sigma, chance)
    real = torch.randn(drift.groups, drift.positives + drift.anchors, *teacher.latent_shape)
    with torch.no_grad():
        both = features(teacher, extractor, real, conditions, sigma, chance)
    positives = {layer: phi[:, : drift.positives] for layer, phi in both.items()}
    anchors = {layer: phi[:, drift.positives :] for layer, phi in both.items()}
    return tfd_loss(own, positives, anchors, drift.radii)[0]


def held(budget: Budget, name: str) -> int:
    return next(part.size_bytes for part in budget.held if part.name == name)


def test_flops_are_those_counted_on_a_real_step(recipe: Recipe, budget: Budget) -> None:
    teacher = load_teacher(recipe.teacher.model, CPU)
    student = make_student(teacher)
    with counting_flops() as text:
        teacher.encode([str(i) for i in range(recipe.drift.groups)])
    with counting_flops() as counter:
        one_micro_batch(teacher, student, recipe).backward()
    assert counter.get_total_flops() - text.get_total_flops() == budget.step.flops > 0


def test_parameters_gradients_and_optimizer_are_exact(recipe: Recipe, budget: Budget) -> None:
    teacher = load_teacher(recipe.teacher.model, CPU)
    student = make_student(teacher)
    one_micro_batch(teacher, student, recipe).backward()
    optimizer = make_optimizer(list(student.parameters()), recipe.train)
    optimizer.step()
    kept = [x for state in optimizer.state.values() for x in state.values()]
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert budget.student == budget.teacher == sum(p.numel() for p in student.parameters())
    assert held(budget, "optimizer") == sum(x.nbytes for x in kept)
    assert held(budget, "its gradients") == sum(x.nbytes for x in gradients)
    assert held(budget, "student's weights") == sum(p.nbytes for p in student.parameters())


def test_saved_activations_are_near_what_autograd_keeps(recipe: Recipe, budget: Budget) -> None:
    teacher = load_teacher(recipe.teacher.model, CPU)
    student = make_student(teacher)
    weights = (*student.parameters(), *teacher.denoiser.parameters(), *teacher.denoiser.buffers())
    known = {x.untyped_storage().data_ptr() for x in weights}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        loss = one_micro_batch(teacher, student, recipe)
    assert loss.requires_grad
    assert budget.step.saved_bytes == pytest.approx(sum(kept.values()), rel=0.2)
    assert budget.step.working_bytes >= budget.step.saved_bytes


def test_the_plain_way_costs_more_and_early_stops_less(budget: Budget) -> None:
    assert budget.step.plain_flops > budget.step.flops
    assert budget.step.features_forward < budget.step.student_forward


@pytest.fixture(scope="module")
def keeping(tiny: Recipe) -> Recipe:
    """The same with features kept at three draws; `sample` is not stored."""
    changes = {"cached_draws": 3, "layers": ("sample/4", *tiny.drift.layers)}
    return tiny.model_copy(update={"drift": tiny.drift.model_copy(update=changes)})


def test_with_kept_features_flops_and_files_are_those_of_a_real_run(keeping: Recipe) -> None:
    teacher, cost = load_teacher(keeping.teacher.model, CPU), count(keeping)
    samples, drift = tiny_samples(teacher), keeping.drift
    with counting_flops() as making:
        cache = open_feature_cache(teacher, samples, keeping, lambda text: None)
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    given = (teacher, make_student(teacher), extractor, samples, keeping, Randomness.of(0, 0, 0))
    with counting_flops() as counter:
        micro_batch(*given, cache=cache)[0].backward()
    shards = [open_shard(path) for path in (keeping.run / "features").glob("shard-*")]
    kept = cache_cost(keeping, cost.step)
    assert kept is not None
    assert kept.samples == len(samples.latents) == 30
    assert counter.get_total_flops() == cost.step.flops > 0
    assert making.get_total_flops() == 30 * kept.sample_flops > 0
    assert sum(x.nbytes for shard in shards for x in shard.values()) == 30 * kept.sample_bytes > 0


def test_kept_features_cost_less_per_step_and_are_said(keeping: Recipe, plain: Budget) -> None:
    budget = count(keeping)
    assert (budget.step.features_real, plain.step.kept_flops) == (0, 0)
    assert budget.step.flops < plain.step.flops
    assert budget.working_bytes(2) <= 1.05 * plain.working_bytes(2)
    lines = "\n".join(report(budget))
    assert "Features of positives and anchors, kept at 3 draws (drift.cached_draws)" in lines
    assert "all 30 take" in lines
    assert "drift.cached_draws" not in "\n".join(report(plain))


def test_samples_are_counted_where_that_is_cheap(tmp_path: Path) -> None:
    write_pictures(tmp_path / "captioned", 3)
    for name in ("0/a.png", "0/b.png", "7/c.png"):
        (tmp_path / "classes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "classes" / name).write_bytes(b"")
    found = [
        samples_of(Positives(source=source, folder=tmp_path / folder))
        for source, folder in (("images", "captioned"), ("classes", "classes"), ("images", "no"))
    ]
    assert found == [4, 3, None]  # a picture with two texts is a sample of both
    assert samples_of(Positives(source="images", dataset=Dataset(path="hub:a/b"))) is None


def test_working_memory_is_linear_in_groups(tiny: Recipe, plain: Budget) -> None:
    four = tiny.model_copy(update={"drift": tiny.drift.model_copy(update={"groups": 4})})
    assert plain.working_bytes(2) == plain.step.working_bytes
    assert plain.working_bytes(4) == pytest.approx(count(four).step.working_bytes, rel=0.02)


def test_checkpointing_keeps_less_and_computes_more(tiny: Recipe, plain: Budget) -> None:
    again = count(trained_by(tiny, checkpointing=True))
    assert again.step.saved_bytes < plain.step.saved_bytes / 2
    assert again.step.flops > plain.step.flops
    assert again.step.student_forward == plain.step.student_forward


def test_a_lora_student_trains_few_parameters(tiny_sdxl: Path, tmp_path: Path) -> None:
    lora = tiny_recipe(
        tmp_path, tiny_sdxl, "student.lora={rank: 2}", "train.ema_device=cpu", "drift.groups=1"
    )
    budget = count(lora)
    assert 0 < budget.trained < budget.teacher / 10
    assert budget.student == budget.teacher + budget.trained
    assert held(budget, "its gradients") == 4 * budget.trained
    assert "moving average" not in {part.name for part in budget.held}
    assert f"({budget.trained / 1e6:,.1f} M trained)" in next(report(budget))


def test_half_precision_saves_memory(tiny: Recipe, plain: Budget) -> None:
    half = count(trained_by(tiny, precision="bf16"))
    assert half.step.flops == plain.step.flops
    assert half.step.saved_bytes < plain.step.saved_bytes


def test_fsdp2_divides_what_is_the_students(plain: Budget) -> None:
    parts = (Part("student", 600, True), Part("teacher", 100, False))
    budget = replace(plain, held=parts, trained=0)
    working = budget.working_bytes(1)
    assert budget.process_bytes(2, "ddp") == 700 + working
    assert budget.process_bytes(2, "fsdp2") == 400 + working


def test_the_verdict_names_the_cards_or_the_way_out(plain: Budget) -> None:
    big = replace(plain, held=(Part("student", int(100e9), True),))
    huge = replace(plain, held=(Part("teacher", int(100e9), False),))
    assert verdict(plain, "ddp") == "ddp (train.parallel): fits in one card of 80 GB"
    assert verdict(big, "fsdp2") == "fsdp2: fits in 2 cards of 80 GB"
    assert verdict(huge, "ddp").endswith("be they 2; train.checkpointing needs less")


def test_8_bit_states_have_a_scale_a_block(tiny: Recipe) -> None:
    small = trained_by(tiny, optimizer="adamw8bit").train
    large, little = nn.Parameter(torch.empty(256, 32)), nn.Parameter(torch.empty(10))
    assert state_bytes(large, small) == 2 * (8192 + 4 * 32)
    assert state_bytes(little, small) == state_bytes(little, tiny.train) == 84


def test_a_dry_run_is_the_recipe_and_comments(tiny: Recipe) -> None:
    text = dry_run(tiny)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert yaml.safe_load(text) == yaml.safe_load(tiny.resolved())
    assert any("FLOP of a student sample" in line for line in comments)
    assert any(line.startswith("# A sample of the teacher for the bank") for line in comments)
    assert comments[-1] == "# fsdp2: fits in one card of 80 GB"


def test_configs_alone_are_enough(
    tiny: Recipe, plain: Budget, tiny_sdxl: Path, tmp_path: Path
) -> None:
    for config in [*tiny_sdxl.glob("*.json"), *tiny_sdxl.glob("*/*config.json")]:
        target = tmp_path / config.relative_to(tiny_sdxl)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(config.read_bytes())
    teacher = tiny.teacher.model_copy(update={"model": tmp_path})
    bare = count(tiny.model_copy(update={"teacher": teacher}))
    assert bare.step == plain.step
    (tmp_path / "unet" / "config.json").unlink()
    with pytest.raises(TeacherError, match="unet has no config"):
        open_outline(tmp_path, FakeTensorMode())


def test_a_missing_teacher_is_said_in_the_dry_run(tiny_sdxl: Path, tmp_path: Path) -> None:
    text = dry_run(tiny_recipe(tmp_path, tmp_path / "nowhere"))
    assert f"# No budget: the teacher's directory {tmp_path / 'nowhere'} does not exist" in text
    assert yaml.safe_load(text)["teacher"]["model"] == str(tmp_path / "nowhere")


def test_a_layer_that_does_not_exist_is_named(tiny_sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer 'nothing' does not exist"):
        dry_run(tiny_recipe(tmp_path, tiny_sdxl, "drift.layers=[nothing]"))


def test_a_part_of_an_unknown_library_is_refused(tmp_path: Path, tiny_sdxl: Path) -> None:
    index = '{"_class_name": "StableDiffusionXLPipeline", "unet": ["elsewhere", "UNet"]}'
    (tmp_path / "model_index.json").write_text(index, "utf-8")
    with pytest.raises(TeacherError, match="unet is of elsewhere; known are diffusers"):
        open_outline(tmp_path, FakeTensorMode())


def test_torch_is_as_it_was_after_standing_in_for_a_gpu() -> None:
    before = (nn.functional.group_norm, nn.functional.scaled_dot_product_attention)
    x = torch.randn(1, 2, 3, 4)
    mask = torch.zeros(3, 3)
    with as_on_gpu(), torch.autocast("cpu", dtype=torch.bfloat16):
        fused = nn.functional.scaled_dot_product_attention(x, x, x)
        masked = nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        causal = nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        assert nn.functional.layer_norm(x.bfloat16(), (4,)).dtype == torch.float32
    assert fused.dtype == torch.bfloat16
    torch.testing.assert_close(fused.float(), masked.float(), atol=0.02, rtol=0.02)
    assert not torch.allclose(fused.float(), causal.float(), atol=0.02)
    after = (nn.functional.group_norm, nn.functional.scaled_dot_product_attention)
    assert after == before


def test_alive_counts_storages_once_and_forgets_them() -> None:
    with Alive() as alive:
        x = torch.zeros(100)
        y = x[10:].view(9, 10)
        z = x + 1
        assert alive.now_bytes == 800
        del x, z
        assert alive.now_bytes == 400  # y looks at x
        alive.leave_out(y)
        alive.leave_out(y)
        assert alive.now_bytes == 0
        del y
    assert (alive.now_bytes, alive.peak_bytes) == (0, 800)
