"""The published EDM checkpoints become `UNet2DModel`: outputs, names and shapes, and refusals."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from original_edm import (
    DhariwalUNet,
    EDMPrecond,
    OpenaiUNet,
    dump,
    shuffled,
    waves,
)
from tiny_training import CPU, draw, silent
from torch import Tensor, nn

from distill.features import FeatureExtractor
from distill.importers.edm import import_edm
from distill.importers.failure import ImportFailure
from distill.importers.noise_features import SIGMAS, combination
from distill.importers.nvlabs_edm import from_dhariwal
from distill.importers.openai_edm import from_openai
from distill.importers.records import Record, weights_of
from distill.teachers.edm import EdmTeacher
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import TeacherError

FULL = {"widths": (192, 384, 576, 768), "blocks": 3, "attention": (False, True, True, True)}
# "Encoder blocks 6 and 11, the bottleneck, decoder blocks 7 and 12", and their pooled sizes.
PAPER_LAYERS = {
    "down_blocks.1.attentions.1": 24_576,
    "down_blocks.2.attentions.2": 9_216,
    "mid_block": 3_072,
    "up_blocks.1.attentions.0": 9_216,
    "up_blocks.2.attentions.0": 24_576,
}


def small_openai() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return shuffled(OpenaiUNet((64, 128), 1, (False, True), 10))


def small_nvlabs() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return shuffled(DhariwalUNet(16, (128, 192), 1, (False, True), 10))


@pytest.fixture(scope="module")
def openai_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openai") / "edm_ema.pt"
    torch.save(small_openai().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def nvlabs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nvlabs") / "edm-cond-adm.pkl"
    with pytest.MonkeyPatch.context() as patch:
        data = {"ema": EDMPrecond(small_nvlabs()), "augment_pipe": None}
        return dump(data, path, patch)


@torch.no_grad()
def largest_difference(teacher: EdmTeacher, original: nn.Module) -> float:
    """Of the networks' outputs, over all of EDM's noise levels; the output's deviation is checked.

    The input has unit variance at every level, as c_in makes it.
    """
    sigma = torch.logspace(math.log10(0.002), math.log10(80), 7, dtype=torch.float64)
    x, labels = draw(7, 3, 16, 16, seed=2), range(3, 10)
    wanted = original(x, sigma, torch.tensor(labels))
    assert wanted.std() > 0.05
    scale = (sigma.float() ** 2 + 0.25).sqrt().view(-1, 1, 1, 1)
    condition = teacher.encode([str(label) for label in labels])
    found = teacher.predict(teacher.denoiser, x * scale, sigma, condition)
    return float((found - wanted).abs().max())


def test_openais_teacher_gives_the_pictures_of_the_original(
    openai_file: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    folder = import_edm(openai_file, tmp_path / "teacher", lines.append)
    teacher = load_teacher(folder, CPU)
    assert isinstance(teacher, EdmTeacher)
    assert largest_difference(teacher, small_openai()) < 1e-4
    assert lines == [f"{folder}: 16 x 16 px, 10 classes, 3.3 million weights"]


def test_nvlabs_teacher_gives_the_pictures_of_the_original(
    nvlabs_file: Path, tmp_path: Path
) -> None:
    teacher = load_teacher(import_edm(nvlabs_file, tmp_path / "teacher", silent), CPU)
    assert isinstance(teacher, EdmTeacher)
    assert largest_difference(teacher, small_nvlabs()) < 1e-4


@pytest.mark.parametrize("width", [192, 128, 64])
def test_nvlabs_noise_features_are_made_of_the_ones_that_are_there(width: int) -> None:
    c = torch.linspace(*(math.log(sigma) / 4 for sigma in SIGMAS), 999, dtype=torch.float64)
    mix, constant = combination(width)
    made = waves(1000 * c, width).double() @ mix.T + constant
    assert (made - waves(c, width)).abs().max() < 2e-6  # float32's own rounding of the angles
    assert mix.abs().sum(1).max() < 3


def test_the_whole_of_openais_checkpoint_is_used_and_nothing_is_missing() -> None:
    with torch.device("meta"):
        adm, moved = from_openai(OpenaiUNet(**FULL, classes=1000).state_dict())
        expected = UNet2DModel(**adm.config()).state_dict()
    assert {name: w.shape for name, w in moved.items()} == {n: w.shape for n, w in expected.items()}
    millions = sum(weight.numel() for weight in moved.values()) / 1e6
    assert round(millions) == 296  # as published
    assert adm.size_px == 64


def test_the_whole_of_nvlabs_checkpoint_is_used_and_becomes_the_same_network() -> None:
    with torch.device("meta"):
        original = OpenaiUNet(**FULL, classes=1000)
        other = DhariwalUNet(64, **FULL, classes=1000)
    adm, moved = from_dhariwal({**other.state_dict(), "map_augment.weight": torch.zeros(192, 9)})
    twin, twin_moved = from_openai(original.state_dict())
    assert adm == twin
    assert {n: w.shape for n, w in moved.items()} == {n: w.shape for n, w in twin_moved.items()}


def test_the_papers_layers_have_the_papers_sizes() -> None:
    with torch.device("meta"):
        adm, _ = from_openai(OpenaiUNet(**FULL, classes=1000).state_dict())
        unet = UNet2DModel(**adm.config()).eval()
        read = FeatureExtractor(unet, list(PAPER_LAYERS), pool=4)
        x, told = torch.empty(1, 3, 64, 64), torch.empty(1)
        features = read(lambda: unet(x, told, class_labels=torch.zeros(1, dtype=torch.long)))
    assert {name: phi.shape[-1] for name, phi in features.items()} == PAPER_LAYERS


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


def test_a_state_dict_of_another_network_is_refused_by_the_name_that_does_not_fit() -> None:
    state = small_openai().state_dict()
    with pytest.raises(ImportFailure, match=r"^middle_block\.1\.norm\.bias is missing"):
        from_openai(without(state, "middle_block.1.norm.bias"))
    straight = {name: value for name, value in state.items() if "input_blocks.3.0.skip" not in name}
    with pytest.raises(ImportFailure, match=r"^nothing in it becomes down_blocks.*conv_shortcut"):
        from_openai(straight)
    with pytest.raises(ImportFailure, match=r"^label_emb\.weight is missing.*class-conditional"):
        from_openai(without(state, "label_emb.weight"))
    with pytest.raises(ImportFailure, match=r"^decoder\.weight have no place in a class-cond"):
        from_openai({**state, "decoder.weight": torch.zeros(1)})
    with pytest.raises(ImportFailure, match=r"^conv_out\.bias has shape \[6\], allowed is \[3\]$"):
        from_openai({**state, "out.2.bias": torch.zeros(6)})
    with pytest.raises(ImportFailure, match="it has 0 input_blocks for 1 levels"):
        from_openai({"weight": torch.zeros(3)})
    with pytest.raises(ImportFailure, match="its blocks are of \\[\\] px"):
        from_dhariwal({"weight": torch.zeros(3)})


def test_other_ways_to_halve_a_map_are_refused() -> None:
    state = small_nvlabs().state_dict()
    name = next(key for key in state if key.endswith("resample_filter"))
    with pytest.raises(ImportFailure, match=r"resample_filter is not the mean of 2x2: \[0\.125"):
        from_dhariwal({**state, name: torch.tensor([[[[0.125, 0.375], [0.375, 0.125]]]])})


def test_nvlabs_network_whose_norms_have_fewer_groups_is_refused() -> None:
    with torch.device("meta"):
        narrow = DhariwalUNet(16, (64, 128), 1, (False, True), 10)
    with pytest.raises(ImportFailure, match=r"have \[64, 128\] channels; supported are 128 and"):
        from_dhariwal(narrow.state_dict())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"G": 1}, "it holds no network named ema"),
        ({"ema": DhariwalUNet(8, (64,), 1, (False,), 2)}, "its network is of class DhariwalUNet"),
        ({"ema": EDMPrecond(nn.ModuleDict())}, "the network in it is of class ModuleDict"),
        ({"ema": EDMPrecond(small_nvlabs(), 0.0)}, "its sigma_data is 0.0; it must be a number"),
        ([1, 2], "it holds no network named ema"),
    ],
)
def test_a_pickle_of_another_network_is_refused(
    data: object, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dump(data, tmp_path / "other.pkl", monkeypatch)
    with pytest.raises(ImportFailure, match=f"^{path} cannot be imported: {sentence}"):
        import_edm(path, tmp_path / "teacher", silent)
    assert not (tmp_path / "teacher").exists()


def test_weights_whose_shapes_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = small_openai().state_dict()
    path = tmp_path / "odd.pt"
    for name, odd in (
        ("middle_block.1.qkv.weight", torch.zeros(7, 128, 1, 1)),
        ("label_emb.weight", torch.tensor(0.0)),
        ("input_blocks.1.0.out_layers.3.weight", torch.zeros(30, 30, 3, 3)),
    ):
        torch.save({**state, name: odd}, path)
        with pytest.raises(ImportFailure, match=f"^{path} cannot be imported: .* shape "):
            import_edm(path, tmp_path / "teacher", silent)
    torch.save({3: torch.zeros(1)}, path)
    with pytest.raises(ImportFailure, match=f"^{path} holds dict, not a state dict of tensors$"):
        import_edm(path, tmp_path / "teacher", silent)


def test_a_module_that_holds_itself_is_refused() -> None:
    inner: dict[str, object] = {}
    record = Record("Ring", inner)
    inner["_modules"] = {"itself": record}
    with pytest.raises(ImportFailure, match="its modules are nested more than 32 deep"):
        weights_of(record)


def test_a_folder_that_is_there_is_left_alone(openai_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ImportFailure, match=f"^{tmp_path} exists already; choose another folder$"):
        import_edm(openai_file, tmp_path, silent)


def test_the_names_of_a_list_are_the_teachers_classes(openai_file: Path, tmp_path: Path) -> None:
    listed = tmp_path / "imagenet.txt"
    listed.write_text("".join(f"  breed\t{number}\n" for number in range(10)), "utf-8")
    folder = import_edm(openai_file, tmp_path / "teacher", silent, listed)
    assert load_teacher(folder, CPU).class_names == tuple(f"breed {n}" for n in range(10))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"tench\ngoldfish\n", "has 2 names; the teacher has 10 classes"),
        (b"tench\n" * 9 + b"\n", "has 10 names, some of them blank; the teacher has 10 classes"),
        (b"\xff\n" * 10, "is not UTF-8: "),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_list_without_a_name_for_each_class_is_refused(
    content: bytes | None, sentence: str, openai_file: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "imagenet.txt"
    if content is not None:
        listed.write_bytes(content)
    with pytest.raises(TeacherError, match=f"^{listed} {sentence}"):
        import_edm(openai_file, tmp_path / "teacher", silent, listed)
    assert [path.name for path in tmp_path.iterdir()] == ["imagenet.txt"] * (content is not None)
