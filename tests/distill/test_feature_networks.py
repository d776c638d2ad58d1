"""Feature networks from the user's disk: what they are given, and what is refused."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import (
    Plain,
    Sum,
    TinyInception,
    random_pictures,
    save_network,
    save_tiny_clip,
    tiny_inception,
)
from tiny_training import CPU
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from distill.feature_networks import Clip, NetworkError, load_clip, load_inception


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("networks") / "clip")


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Clip:
    return load_clip(clip_folder, CPU)


@torch.no_grad()
def test_inception_is_given_planes_of_values_up_to_255(tmp_path: Path) -> None:
    inception = load_inception(save_network(tiny_inception(), tmp_path / "inception.pt"), CPU)
    pictures = torch.randint(0, 256, (3, 29, 41, 3), dtype=torch.uint8)
    expected = tiny_inception()(pictures.permute(0, 3, 1, 2), return_features=True)
    assert torch.allclose(inception(pictures), expected, atol=1e-6)
    assert torch.allclose(inception(pictures.float()), expected, atol=1e-6)
    assert len(inception.sha256) == 64


def test_a_network_that_is_missing_or_no_torchscript_is_named(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"no\.pt does not exist; nothing is downloaded"):
        load_inception(tmp_path / "no.pt", CPU)
    path = tmp_path / "inception.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(NetworkError, match=r"inception\.pkl is no TorchScript .*\.pkl is refused"):
        load_inception(path, CPU)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_alone_are_no_torchscript(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "pt_inception.pth"
    weights = tiny_inception().state_dict()
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(NetworkError, match=r"pt_inception\.pth is no TorchScript"):
        load_inception(path, CPU)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Plain(), "does not take pictures .* return_features=True: forward"),
        (Sum(), "returns no tensor with a row for each picture"),
        (TinyInception(spoilt=True), "returns features not finite"),
    ],
)
def test_a_network_of_another_kind_is_refused(
    tmp_path: Path, network: nn.Module, sentence: str
) -> None:
    inception = load_inception(save_network(network, tmp_path / "other.pt"), CPU)
    with pytest.raises(NetworkError, match=rf"evaluate\.inception: .*other\.pt {sentence}"):
        inception(torch.zeros(2, 9, 9, 3, dtype=torch.uint8))


@torch.no_grad()
def test_clip_sees_pictures_as_its_own_processor_prepares_them(
    clip: Clip, clip_folder: Path
) -> None:
    pictures = random_pictures(3, 80, 80)
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    pixels = processor(pictures, return_tensors="pt").pixel_values
    expected = CLIPModel.from_pretrained(clip_folder).get_image_features(pixel_values=pixels)
    assert torch.allclose(clip.pictures(pictures), expected.pooler_output, atol=1e-5)
    assert clip.pictures(pictures)[0].sub(clip.pictures(pictures)[1]).abs().max() > 1e-3


@torch.no_grad()
def test_clip_reads_a_caption_after_its_prefix_alone_or_beside_others(
    clip: Clip, clip_folder: Path
) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    model = CLIPModel.from_pretrained(clip_folder)
    ids = tokenizer(["A photo depicts red"], return_tensors="pt").input_ids
    expected = model.get_text_features(input_ids=ids).pooler_output
    assert torch.allclose(clip.texts(["red"]), expected, atol=1e-5)
    assert torch.allclose(clip.texts(["red", "a blue"])[:1], expected, atol=1e-5)
    assert clip.cut_captions == 0


def test_captions_that_clip_cannot_read_whole_are_counted(clip_folder: Path) -> None:
    clip = load_clip(clip_folder, CPU)
    cut = clip.texts(["q" * 40, "red", "q" * 30])
    assert clip.cut_captions == 2
    assert torch.equal(cut[0], cut[2])


def test_the_colours_are_clips_where_the_directory_says_nothing(tmp_path: Path) -> None:
    folder = save_tiny_clip(tmp_path / "clip")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0]}))
    other = load_clip(folder, CPU)
    assert other._mean.flatten().tolist() == [0, 0, 0]
    assert other._std.flatten().tolist() == pytest.approx([0.26862954, 0.26130258, 0.27577711])
    before = other.sha256
    (folder / "preprocessor_config.json").unlink()
    assert load_clip(folder, CPU).sha256 != before


def test_a_directory_that_is_no_clip_is_named(tmp_path: Path, clip_folder: Path) -> None:
    with pytest.raises(NetworkError, match=r"evaluate\.clip: .* has no config\.json; nothing is"):
        load_clip(tmp_path, CPU)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(NetworkError, match="holds a 'bert', and must hold a 'clip'"):
        load_clip(tmp_path, CPU)
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    with pytest.raises(NetworkError, match=r"evaluate\.clip: .* cannot be opened: "):
        load_clip(tmp_path, CPU)
    (tmp_path / "model.safetensors").write_bytes(np.zeros(64, np.uint8).tobytes())
    with pytest.raises(NetworkError, match=r"evaluate\.clip: .* cannot be opened: "):
        load_clip(tmp_path, CPU)
