"""ONNX Runtime on the CPU, as a function from inputs to pictures."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.verify import Feeds, Infer


def open_session(file: Path, threads: int = 0) -> Infer:
    """Load the graph; `threads` 0 leaves their number to ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(file), sess_options=options, providers=["CPUExecutionProvider"]
    )

    def infer(feeds: Feeds) -> NDArray[np.uint8]:
        pictures: NDArray[np.uint8] = session.run(None, dict(feeds))[0]
        return pictures

    return infer
