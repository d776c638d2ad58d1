"""Trains UNet and text encoders: `python train_denoiser.py --vae DIR --out DIR`.

Ordinary diffusion training (epsilon prediction, SDXL's schedule, conditions dropped for guidance,
EMA). Seeded by step; the same command resumes from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import teacher
import torch
import world
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from torch import Tensor, nn

from distill import checkpoint
from distill.noise import NoiseSchedule
from distill.shards import open_shard, read_note, write_shard
from distill.teachers.teacher import weights_digest

LEARNING_RATE = 1e-3
WARMUP_STEPS = 200
DROP_CONDITION = (
    0.1  # share of examples whose condition is zeros, as the pipeline's is without text
)
EMA_DECAY = 0.999
CHECKPOINT_STEPS = 250


def draw_data(
    count: int, seed: int, vae: AutoencoderKL, kept: Tensor | None
) -> tuple[list[world.Scene], Tensor]:
    """Scenes and their latents [count, 4, 8, 8] (unless kept), scaled as the denoiser sees them."""
    rng = np.random.default_rng(seed)
    scenes = [world.random_scene(rng) for _ in range(count)]
    if kept is not None:
        return scenes, kept
    latents = []
    for start in range(0, count, 64):
        drawn = np.stack([world.draw(scene, rng) for scene in scenes[start : start + 64]])
        x = torch.from_numpy(drawn).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents.append(vae.encode(x).latent_dist.mean.contiguous())
    return scenes, torch.cat(latents) * vae.config.scaling_factor


def encode(pipe: StableDiffusionXLPipeline, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Prompt embeddings [n, 77, 96] and pooled embedding [n, 64], as SDXL makes them."""
    hidden = []
    for tokenizer, encoder in (
        (pipe.tokenizer, pipe.text_encoder),
        (pipe.tokenizer_2, pipe.text_encoder_2),
    ):
        ids = tokenizer(
            captions, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        out = encoder(ids, output_hidden_states=True)
        hidden.append(out.hidden_states[-2])
    return torch.cat(hidden, dim=-1), out.text_embeds


def loss_of_step(
    pipe: StableDiffusionXLPipeline,
    schedule: NoiseSchedule,
    data: tuple[list[world.Scene], Tensor],
    batch: int,
    seed: tuple[int, int],
) -> Tensor:
    """Mean squared error of epsilon at stratified timesteps, on fresh captions of drawn scenes."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    scenes, latents = data
    chosen = rng.integers(len(scenes), size=batch)
    x0 = latents[torch.from_numpy(chosen)]
    eps = torch.randn(x0.shape, generator=generator)
    strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    t = (strata * len(schedule.sigmas)).long()
    prompt, pooled = encode(pipe, [world.random_caption(scenes[i], rng) for i in chosen])
    kept = (torch.rand(batch, generator=generator) >= DROP_CONDITION).float()[:, None]
    time_ids = torch.tensor([[world.SIZE_PX, world.SIZE_PX, 0, 0, world.SIZE_PX, world.SIZE_PX]])
    predicted = pipe.unet(
        schedule.add_noise(x0, eps, t),
        t,
        prompt * kept[..., None],
        added_cond_kwargs={"text_embeds": pooled * kept, "time_ids": time_ids.repeat(batch, 1)},
    ).sample
    return (predicted - eps).square().mean()


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to a hundredth."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return LEARNING_RATE * warm * (0.505 + 0.495 * np.cos(np.pi * step / steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--decoder", type=Path, help="the sharpened VAE, for the saved teacher")
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pipe = teacher.pipeline()
    pipe.vae = AutoencoderKL.from_pretrained(args.vae).to(memory_format=torch.channels_last)
    kept = args.out / "latents.safetensors"
    fingerprint = (
        f"{args.pictures} pictures, seed {args.seed}, {weights_digest(pipe.vae.state_dict())}"
    )
    known = kept.is_file() and read_note(kept) == fingerprint
    latents = open_shard(kept)["latents"] if known else None
    data = draw_data(args.pictures, args.seed, pipe.vae, latents)
    if latents is None:
        write_shard(kept, {"latents": data[1]}, fingerprint)
    print(
        "latents", [round(v, 3) for v in (data[1].mean().item(), data[1].std().item())], flush=True
    )
    schedule = NoiseSchedule(pipe.scheduler.alphas_cumprod)
    networks = nn.ModuleDict(
        {name: getattr(pipe, name) for name in ("unet", "text_encoder", "text_encoder_2")}
    )
    parameters = dict(networks.named_parameters())
    ema = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0, betas=(0.9, 0.99), weight_decay=0.01)

    # Resume.
    start = 0
    folder = args.out / "checkpoints"
    if (last := checkpoint.latest(folder, print)) is not None:
        groups, meta = checkpoint.load(last)
        networks.load_state_dict(groups["networks"])
        ema = {name: groups["ema"][name] for name in parameters}
        optimizer.load_state_dict(
            checkpoint.unflatten_optimizer(groups["optimizer"], meta["optimizer"])
        )
        start = meta["step"]
        print("resumed at step", start, flush=True)

    began = time.monotonic()
    running = 1.0
    for step in range(start, args.steps):
        value = loss_of_step(pipe, schedule, data, args.batch, (args.seed, step))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, args.steps)
        optimizer.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.values()), list(parameters.values()), 1 - decay)
        running += 0.02 * (value.item() - running)
        if step % 50 == 0:
            print(f"{step:5d}  loss {running:.4f}  {time.monotonic() - began:.0f} s", flush=True)
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == args.steps:
            tensors, numbers = checkpoint.flatten_optimizer(optimizer.state_dict())
            checkpoint.save(
                folder,
                step + 1,
                {"networks": networks.state_dict(), "ema": ema, "optimizer": tensors},
                {"step": step + 1, "optimizer": numbers},
            )

    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(ema[name])
    if args.decoder:
        pipe.vae = AutoencoderKL.from_pretrained(args.decoder)
    save(pipe, args.out / "teacher")


def save(pipe: StableDiffusionXLPipeline, folder: Path) -> None:
    """Weights rounded to float16, to lie small in git; the configs ask for float32 all the same."""
    pipe.to(torch.float16).save_pretrained(folder)
    for config in folder.glob("*/config.json"):
        plain = json.loads(config.read_text("utf-8"))
        plain.pop("_name_or_path", None)
        if "dtype" in plain:  # transformers loads in the type that the config names
            plain["dtype"] = "float32"
        config.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
