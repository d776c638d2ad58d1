"""Both importers of EDM teachers against the code that wrote the published files, in full size.

    git clone https://github.com/openai/consistency_models runs/openai
    git clone https://github.com/NVlabs/edm runs/nvlabs
    pip install einops requests
    python benchmarks/original_edm.py openai runs/openai
    python benchmarks/original_edm.py nvlabs runs/nvlabs

The network of the published teacher is built by its own code, gets random weights (those too that
begin at zero) and is written as its trainer writes it. `distill import edm` reads that file in a
process which cannot import the code. Then both run in float32 on the CPU: F is the network's
output, D the clean picture, c the largest change of F by another class. What the network does not
need of the code's dependencies is replaced by nothing, FlashAttention by attention.
"""

from __future__ import annotations

import argparse
import copy
import pickle
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.teachers.opening import load_teacher

SIGMAS = (0.002, 0.02, 0.1, 0.5, 2.0, 10.0, 80.0)
LABELS = (0, 1, 145, 387, 500, 888, 999)
# scripts/launch.sh, "Training EDM models on class-conditional ImageNet-64"
OPENAI = {
    "attention_resolutions": "32,16,8",
    "class_cond": True,
    "use_scale_shift_norm": True,
    "dropout": 0.1,
    "image_size": 64,
    "num_channels": 192,
    "num_head_channels": 64,
    "num_res_blocks": 3,
    "resblock_updown": True,
    "use_fp16": True,
    "weight_schedule": "karras",
}
# train.py with --cond=1 --arch=adm --dropout=0.10 --augment=0 --fp16=1
NVLABS = {
    "model_type": "DhariwalUNet",
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "dropout": 0.1,
    "use_fp16": True,
}
Original = Callable[[Tensor, float, int], tuple[Tensor, Tensor]]  # x, sigma, label -> F, D


class PlainAttention(nn.Module):
    """What FlashAttention computes: [b, s, 3, h, d] -> [b, s, h, d]."""

    def __init__(self, **_: object) -> None:
        super().__init__()

    def forward(self, qkv: Tensor, **_: object) -> tuple[Tensor, None]:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # b h s d
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2), None


def nothing(name: str, **holds: object) -> None:
    """A module of this name, for an import statement that the network does not need."""
    module: Any = types.ModuleType(name)
    vars(module).update(holds)
    sys.modules[name] = module


def randomize(network: nn.Module) -> None:
    """Moves norms and biases off one and zero, and gives weights that are zero random ones."""
    generator = torch.Generator().manual_seed(13)
    with torch.no_grad():
        for weight in network.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight += 0.1 * noise
            elif not weight.any():
                weight += 0.5 * noise / weight[0].numel() ** 0.5


def openai(file: Path) -> Original:
    """OpenAI's network in float32, after its trainer's state dict was written to `file`."""
    nothing("mpi4py", MPI=None)
    nothing("blobfile")
    nothing("piq", LPIPS=lambda **_: None)
    nothing("torchvision")
    nothing("torchvision.transforms", RandomCrop=None)
    nothing("flash_attn")
    nothing("flash_attn.flash_attention", FlashAttention=PlainAttention)
    from cm.fp16_util import MixedPrecisionTrainer
    from cm.script_util import create_model_and_diffusion, model_and_diffusion_defaults

    network, diffusion = create_model_and_diffusion(**{**model_and_diffusion_defaults(), **OPENAI})
    randomize(network)
    trainer = MixedPrecisionTrainer(model=network, use_fp16=True)
    torch.save(trainer.master_params_to_state_dict(trainer.master_params), file)
    network.convert_to_fp32()
    network.dtype = torch.float32
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval()
    return lambda x, sigma, label: diffusion.denoise(
        network, x, torch.tensor([sigma]), y=torch.tensor([label])
    )


def nvlabs(file: Path) -> Original:
    """NVlabs' network in float32, after it was pickled to `file` as training_loop.py does."""
    import dnnlib

    build = dnnlib.util.construct_class_by_name
    net = build(
        class_name="training.networks.EDMPrecond",
        **NVLABS,
        img_resolution=64,
        img_channels=3,
        label_dim=1000,
    )
    randomize(net)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    loss_fn = build(class_name="training.loss.EDMLoss")
    data = {"ema": ema, "loss_fn": loss_fn, "augment_pipe": None, "dataset_kwargs": {}}
    file.write_bytes(pickle.dumps(data))
    seen: list[Tensor] = []
    ema.model.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))

    def run(x: Tensor, sigma: float, label: int) -> tuple[Tensor, Tensor]:
        one_hot = torch.eye(1000)[label : label + 1]
        clean = ema(x, torch.tensor([sigma]), one_hot, force_fp32=True)
        return seen.pop(), clean

    return run


@torch.no_grad()
def compare(original: Original, folder: Path) -> None:
    """Prints the largest differences, by noise level."""
    teacher: Any = load_teacher(folder, torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    print("| sigma | class | std of F | c | difference of F | of D |\n|---|---|---|---|---|---|")
    for sigma, label in zip(SIGMAS, LABELS, strict=True):
        picture, noise = torch.randn(2, 1, 3, 64, 64, generator=generator)
        x = picture / 2 + sigma * noise
        F, D = original(x, sigma, label)
        other, _ = original(x, sigma, 999 - label)
        condition = teacher.encode([str(label)])
        level = torch.tensor([sigma], dtype=torch.float64)
        mine = teacher.predict(teacher.denoiser, x, level, condition)
        clean = teacher.clean(teacher.denoiser, x, sigma, condition)
        print(
            f"| {sigma:g} | {label} | {F.std():.2f} | {(other - F).abs().max():.2f} |"
            f" {(mine - F).abs().max():.1e} | {(clean - D).abs().max():.1e} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=["openai", "nvlabs"])
    parser.add_argument("checkout", type=Path)
    args = parser.parse_args()
    sys.path.insert(0, str(args.checkout.resolve()))
    torch.manual_seed(11)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("edm.pt" if args.kind == "openai" else "edm.pkl")
        original = {"openai": openai, "nvlabs": nvlabs}[args.kind](file)
        teacher = Path(folder) / "teacher"
        command = [sys.executable, "-m", "singlepass", "import", "edm", file, "--out", teacher]
        subprocess.run(command, check=True)
        print(f"torch {version('torch')}, diffusers {version('diffusers')}")
        compare(original, teacher)


if __name__ == "__main__":
    main()
