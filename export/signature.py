"""The names, types and shapes of the one graph: what a caller has to know of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

TOKENS = 77  # CLIP's context
T5_TOKENS = 256  # as many as stock diffusers and our teachers have T5 read
NOISE = "noise"
CLASS_LABELS = "class_labels"
# In the order of the text encoders, with the number of ids that each takes.
TEXT_INPUTS = {"input_ids": TOKENS, "input_ids_2": TOKENS, "input_ids_3": T5_TOKENS}

Size = tuple[int, int]  # (width, height) of a picture in pixels


@dataclass(frozen=True)
class Tensor:
    """One input or output; `shape` leaves out the batch; None is a height or width left open."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """The inputs in order, the one output, and the sizes of its pictures, the default first."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    sizes: tuple[Size, ...] = ()
    pixels_per_latent: int = 8

    def at(self, size: Size) -> "Signature":
        """The same graph called for pictures of one size: no dimension but the batch is open."""
        assert size in self.sizes, f"{size} is none of {self.sizes}"
        width, height = size
        open_to = {self.output.name: (height, width)}
        open_to[NOISE] = (height // self.pixels_per_latent, width // self.pixels_per_latent)
        inputs = tuple(_fill(tensor, open_to.get(tensor.name, ())) for tensor in self.inputs)
        output = _fill(self.output, open_to[self.output.name])
        return replace(self, inputs=inputs, output=output, sizes=(size,))

    def noise_shape(self, size: Size) -> tuple[int, ...]:
        """[C, h, w] of the noise for pictures of one size."""
        noise = next(tensor for tensor in self.at(size).inputs if tensor.name == NOISE)
        return tuple(length for length in noise.shape if length is not None)


def _fill(tensor: Tensor, lengths: Sequence[int]) -> Tensor:
    """`tensor` with its open dimensions, if there are any, set to `lengths` in order."""
    if None not in tensor.shape:
        return tensor
    rest = iter(lengths)
    shape = tuple(next(rest) if length is None else length for length in tensor.shape)
    return replace(tensor, shape=shape)


def text_to_image(
    latent_channels: int,
    latent_size: int,
    size_px: int,
    sizes: Sequence[Size] = (),
    encoders: int = 2,
) -> Signature:
    """Token ids of each text encoder and noise [B, C, h, w] in, pictures [B, H, W, 3] out.

    Without `sizes` the one size is `size_px` squared; with several, heights and widths are open.
    """
    scale = size_px // latent_size
    sizes = tuple(sizes) or ((size_px, size_px),)
    signature = Signature(
        inputs=(
            *(Tensor(name, "int64", (n,)) for name, n in [*TEXT_INPUTS.items()][:encoders]),
            Tensor(NOISE, "float32", (latent_channels, None, None)),
        ),
        output=Tensor("image", "uint8", (None, None, 3)),
        sizes=sizes,
        pixels_per_latent=scale,
    )
    return signature if len(sizes) > 1 else signature.at(sizes[0])


def class_to_image(channels: int, size_px: int) -> Signature:
    """Class numbers and noise [B, C, H, W] in, pictures [B, H, W, 3] of one size out."""
    return Signature(
        inputs=(
            Tensor(CLASS_LABELS, "int64", ()),
            Tensor(NOISE, "float32", (channels, size_px, size_px)),
        ),
        output=Tensor("image", "uint8", (size_px, size_px, 3)),
        sizes=((size_px, size_px),),
        pixels_per_latent=1,
    )
