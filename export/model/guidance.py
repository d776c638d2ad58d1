"""The guidance embedding of models that were distilled together with their guidance (LCM)."""

import torch

from export.model.student import Student


def guidance_embedding(student: Student) -> torch.Tensor | None:
    """[1, D] float32 for the student's guidance scale w, or None where the UNet takes none.

    Guided distillation conditions the UNet on w (2210.03142, section 3.1); stock diffusers embeds
    w - 1 as it embeds timesteps, and so its own method is asked.
    """
    width = student.denoiser.config.get("time_cond_proj_dim")
    if width is None:
        return None
    scale = torch.tensor([student.recipe.guidance_scale - 1])
    embedding: torch.Tensor = student.pipeline.get_guidance_scale_embedding(scale, width)
    return embedding
