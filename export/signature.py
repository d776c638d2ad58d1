"""The names, types and shapes of the one graph: what a caller has to know of it."""

from dataclasses import dataclass

TOKENS = 77  # CLIP's context


@dataclass(frozen=True)
class Tensor:
    """One input or output; `shape` leaves out the batch, which always comes first."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """The inputs in order, and the one output."""

    inputs: tuple[Tensor, ...]
    output: Tensor


def text_to_image(latent_channels: int, latent_size: int, size_px: int) -> Signature:
    """Token ids of both encoders and noise [B, C, H/8, W/8] in, pictures [B, H, W, 3] out."""
    return Signature(
        inputs=(
            Tensor("input_ids", "int64", (TOKENS,)),
            Tensor("input_ids_2", "int64", (TOKENS,)),
            Tensor("noise", "float32", (latent_channels, latent_size, latent_size)),
        ),
        output=Tensor("image", "uint8", (size_px, size_px, 3)),
    )
