"""The models that every server here serves, without a server: ours and the peers' call the same.

`null` answers at once with one fixed picture and reads nothing of the request. `shapes` is the
shipped model: tokenizer, noise, ONNX Runtime on all cores, PNG as the gateway writes it.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # the peers' environment does not have the gateway installed

from serve.images import Origin, encode  # noqa: E402
from serve.model import load_model  # noqa: E402

REPOSITORY = ROOT / "model_repository"
NULL = (np.arange(64 * 64 * 3) % 251).astype(np.uint8).reshape(64, 64, 3)
NULL_PICTURE = NULL.tobytes()
MAX_BATCH = 8


class Shapes:
    """The shapes model; `draw` takes rows of inputs, so that a server can batch.

    `threads` of one call; 0: all cores.
    """

    def __init__(self, threads: int = 0) -> None:
        self._model = load_model(REPOSITORY, "shapes")
        options = onnxruntime.SessionOptions()
        options.use_deterministic_compute = True
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            self._model.graph, options, providers=["CPUExecutionProvider"]
        )

    def inputs(self, prompt: str, seed: int) -> dict[str, Any]:
        """One row: ids and noise."""
        return {**self._model.tokenize(prompt), "noise": self._model.noise(seed)}

    def draw(self, rows: list[dict[str, Any]]) -> list[np.ndarray]:
        """A batch in one call of the graph, [H, W, 3] for each row."""
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return list(self._session.run(None, stacked)[0])

    def png(self, pixels: np.ndarray, prompt: str, seed: int) -> bytes:
        """The file, with its origin in it."""
        origin = Origin(prompt, seed, self._model.label, self._model.manifest.digest)
        return encode(pixels, "png", None, origin)
