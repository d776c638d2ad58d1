"""Noise from a seed: the stream that torch's CPU generator draws, without torch.

`torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` takes 24-bit uniforms from
MT19937 and turns them into normals by Box-Muller in blocks of 16: the first 8 uniforms of a block
are radii, the last 8 angles; the cosines come first, then the sines. Where the count is no
multiple of 16, the last 16 values are drawn afresh, over the tail of what was there.
"""

import math
import threading

import numpy as np
from numpy.typing import NDArray

MAX_SEED = 2**64 - 1  # as torch.Generator.manual_seed; of these 64 bits MT19937 uses the low 32
BLOCK = 16
TWO_PI = np.float32(2.0 * math.pi)  # torch's angles are float32; their rounding moves the normals


def draw(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise of `shape` (16 values or more), equal to torch's within 5e-7.

    But for the angle, which is rounded as torch rounds it, computed in float64 and rounded once:
    so it does not hang on a machine's libm.
    """
    count = math.prod(shape)
    assert 0 <= seed <= MAX_SEED, f"seed {seed} outside 0..{MAX_SEED}"
    assert count >= BLOCK, f"{count} values; torch draws fewer than {BLOCK} by another rule"
    _streams.start(seed)
    uniforms = _uniforms(count)
    whole = count - count % BLOCK
    values = np.empty(count, np.float32)
    _box_muller(uniforms[:whole], values[:whole])
    if whole < count:
        _box_muller(_uniforms(BLOCK), values[-BLOCK:])
    return values.reshape(shape)


class _Streams(threading.local):
    """One generator a thread, seeded anew for each picture.

    A new one would first seed itself from entropy, which takes longer than a small picture's noise.
    """

    def __init__(self) -> None:
        self.words = np.random.MT19937(0)
        self._own = np.random.RandomState(self.words)

    def start(self, seed: int) -> None:
        """Go to the start of a seed's stream."""
        self._own.seed(seed & 0xFFFFFFFF)


_streams = _Streams()


def _uniforms(count: int) -> NDArray[np.float64]:
    """The thread's next `count` numbers in [0, 1): the low 24 bits of each 32-bit word."""
    words = _streams.words.random_raw(count)
    words &= np.uint64(0xFFFFFF)
    return np.multiply(words, 2.0**-24, dtype=np.float64)


def _box_muller(uniforms: NDArray[np.float64], out: NDArray[np.float32]) -> None:
    """[16 k] uniforms -> [16 k] normals, block by block, rounded into `out`."""
    blocks, normals = uniforms.reshape(-1, 2, BLOCK // 2), out.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(-2.0 * np.log(1.0 - blocks[:, 0]))
    angle = (TWO_PI * blocks[:, 1].astype(np.float32)).astype(np.float64)
    np.multiply(radius, np.cos(angle), out=normals[:, 0], casting="same_kind")
    np.multiply(radius, np.sin(angle), out=normals[:, 1], casting="same_kind")
