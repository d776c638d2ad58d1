"""The architecture of the shapes teacher: SDXL's, part by part, small.

Two CLIP tokenizers (the second pads with "!", as SDXL's does), two CLIP text encoders whose
penultimate hidden states are concatenated, a UNet with text_time conditioning whose outer level has
no attention, an f8 VAE with four latent channels, and SDXL's scheduler.
"""

from __future__ import annotations

import json

import world
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

MAX_TOKENS = 77
POOLED_DIM = 64
TIME_IDS_DIM = 8  # Fourier features per number of the size conditioning


def tokenizer(pad_token: str) -> CLIPTokenizer:
    """CLIP's byte-level BPE with merges learnt on this world's words, each of them one token."""
    words = sorted({"a", "and", "shape", *world.COLOURS, *world.SHAPES, *world.RADII_PX})
    words += sorted({word for phrase in world.PHRASES.values() for word in phrase.split()})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False, special_tokens=[]
    )
    learner.train_from_iterator(sorted(set(words)) * 2, trainer)
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=MAX_TOKENS
    )


def text_config(vocabulary: CLIPTokenizer, width: int) -> CLIPTextConfig:
    """A two-layer CLIP text encoder; only its first layer's output conditions the UNet."""
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 16,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=POOLED_DIM,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.pad_token_id,
    )


def unet() -> UNet2DConditionModel:
    """The denoiser: 8x8 without attention, 4x4 with it, as SDXL keeps attention inside."""
    return UNet2DConditionModel(
        sample_size=world.SIZE_PX // 8,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32 + 64,
        attention_head_dim=(4, 6),  # diffusers reads it as the number of heads
        transformer_layers_per_block=1,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_IDS_DIM,
        projection_class_embeddings_input_dim=POOLED_DIM + 6 * TIME_IDS_DIM,
    )


def vae() -> AutoencoderKL:
    """64x64x3 pictures to 8x8x4 latents and back."""
    return AutoencoderKL(
        sample_size=world.SIZE_PX,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    )


def pipeline() -> StableDiffusionXLPipeline:
    """The whole pipeline with random weights (the caller seeds torch)."""
    first, second = tokenizer("<|endoftext|>"), tokenizer("!")
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(first, 32)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(second, 64)),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            prediction_type="epsilon",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )
