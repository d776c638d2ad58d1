"""Trains the VAE of the shapes teacher: `python train_vae.py --out DIR`.

Pictures are drawn afresh each step, seeded by the step; loss = L1 + squared error + a small KL.
`--sharpen DIR` goes on with the decoder alone: the latents stay what they are, so that this may run
beside the denoiser's training.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import teacher
import torch
import world
from diffusers import AutoencoderKL

KL_WEIGHT = 3e-4


def pictures(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Drawn pictures of random scenes, [count, 3, 64, 64] float32 in [-1, 1]."""
    drawn = np.stack([world.draw(world.random_scene(rng), rng) for _ in range(count)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def loss(vae: AutoencoderKL, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Reconstruction (absolute and squared) plus KL per latent number."""
    posterior = vae.encode(x).latent_dist
    again = vae.decode(posterior.sample(generator)).sample
    reconstruction = (again - x).abs().mean() + 4 * (again - x).square().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return reconstruction + KL_WEIGHT * kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sharpen", type=Path, help="a trained VAE whose decoder goes on")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    vae = AutoencoderKL.from_pretrained(args.sharpen) if args.sharpen else teacher.vae()
    vae.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    if args.sharpen:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, args.steps, pct_start=0.05)
    began = time.monotonic()
    for step in range(args.steps):
        rng = np.random.default_rng([args.seed, int(args.sharpen is not None), step])
        value = loss(vae, pictures(rng, args.batch), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(
                f"{step:5d}  loss {value.item():.4f}  {time.monotonic() - began:.0f} s", flush=True
            )

    # Unit variance for the denoiser: SDXL keeps the factor in the VAE's config, and so do we.
    with torch.no_grad():
        x = pictures(np.random.default_rng([args.seed, args.steps]), 256)
        latents = vae.encode(x).latent_dist.mean
        again = vae.decode(latents).sample
    if not args.sharpen:
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    print("scaling", vae.config.scaling_factor, "channel mean", latents.mean((0, 2, 3)).tolist())
    print("channel std", latents.std((0, 2, 3)).tolist(), "L1", (again - x).abs().mean().item() / 2)
    vae.save_pretrained(args.out)


if __name__ == "__main__":
    main()
