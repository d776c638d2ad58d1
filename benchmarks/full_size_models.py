"""The configurations of the public text models, in full size; what is not named is a default.

stabilityai/stable-diffusion-xl-base-1.0, -3-medium, -3.5-medium and -3.5-large. A part is its
library, its class and its configuration. Schedulers are those of one-step students.
"""

from dataclasses import dataclass
from typing import Any

Part = tuple[str, str, dict[str, Any]]

VOCABULARY = 49408  # of both CLIPs

UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
MEDIUM_35 = {
    **MEDIUM,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
LARGE_35 = {
    **MEDIUM,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
VAE: dict[str, Any] = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
VAE_3 = {
    **VAE,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "vocab_size": VOCABULARY,
}
CLIP_2: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "vocab_size": VOCABULARY,
}
T5: dict[str, Any] = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
DDIM = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 999,
    "set_alpha_to_one": True,
    "clip_sample": False,
}


@dataclass(frozen=True)
class Model:
    """A pipeline's class, its parts with weights by name, its scheduler."""

    pipeline: str
    parts: dict[str, Part]
    scheduler: Part

    @property
    def index(self) -> dict[str, Any]:
        """What `model_index.json` says."""
        encoders = [name for name in self.parts if name.startswith("text_encoder")]
        named = {**self.parts, "scheduler": self.scheduler}
        found: dict[str, Any] = {
            "_class_name": self.pipeline,
            **{name: [library, kind] for name, (library, kind, _) in named.items()},
            **{tokenizer_of(name): ["transformers", "CLIPTokenizer"] for name in encoders},
        }
        if "text_encoder_3" in encoders:
            found["tokenizer_3"] = ["transformers", "T5Tokenizer"]
        return found


def tokenizer_of(encoder: str) -> str:
    """The name of the tokenizer that goes with a text encoder."""
    return encoder.replace("text_encoder", "tokenizer")


def sd3(transformer: dict[str, Any], t5: bool) -> Model:
    """SD 3 or 3.5 with this transformer; without T5 its two parts are left out."""
    parts: dict[str, Part] = {
        "text_encoder": ("transformers", "CLIPTextModelWithProjection", CLIP),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", CLIP_2),
        "text_encoder_3": ("transformers", "T5EncoderModel", T5),
        "transformer": ("diffusers", "SD3Transformer2DModel", transformer),
        "vae": ("diffusers", "AutoencoderKL", VAE_3),
    }
    if not t5:
        del parts["text_encoder_3"]
    scheduler = ("diffusers", "FlowMatchEulerDiscreteScheduler", {})
    return Model("StableDiffusion3Pipeline", parts, scheduler)


MODELS = {
    "sdxl": Model(
        "StableDiffusionXLPipeline",
        {
            "text_encoder": ("transformers", "CLIPTextModel", CLIP),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", CLIP_2),
            "unet": ("diffusers", "UNet2DConditionModel", UNET),
            "vae": ("diffusers", "AutoencoderKL", VAE),
        },
        ("diffusers", "DDIMScheduler", DDIM),
    ),
    **{
        name + ("-t5" if t5 else ""): sd3(transformer, t5)
        for name, transformer in (
            ("sd3", MEDIUM),
            ("sd3.5-medium", MEDIUM_35),
            ("sd3.5-large", LARGE_35),
        )
        for t5 in (False, True)
    },
}
