"""A model behind a running Triton server, as a function from inputs to pictures."""

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from export.errors import ExportError
from export.gate.cases import Feeds, Infer, Pictures

OUTPUT = "image"
TIMEOUT_S = 300.0


def triton_infer(url: str, model: str, version: int, timeout_s: float = TIMEOUT_S) -> Infer:
    """Ask the server at `url` (HOST:PORT, gRPC) for one version of a model.

    `ExportError` says that nobody answers there, or that the server does not hold the version.
    """
    client = triton.InferenceServerClient(url)
    try:
        ready = client.is_model_ready(model, str(version), client_timeout=timeout_s)
    except InferenceServerException as error:
        raise ExportError(f"no Triton server answers at {url}: {error.message()}") from error
    if not ready:
        raise ExportError(f"the Triton server at {url} does not hold {model}/{version} ready")

    def infer(feeds: Feeds) -> Pictures:
        inputs = [_input(name, array) for name, array in feeds.items()]
        try:
            answer = client.infer(
                model,
                inputs,
                model_version=str(version),
                outputs=[triton.InferRequestedOutput(OUTPUT)],
                client_timeout=timeout_s,
            )
        except InferenceServerException as error:
            raise ExportError(
                f"the Triton server at {url} does not draw {model}/{version}: {error.message()}"
            ) from error
        pictures: Pictures = answer.as_numpy(OUTPUT)
        return pictures

    return infer


def _input(name: str, array: NDArray[np.generic]) -> triton.InferInput:
    """One input with its values, in Triton's words; one number a picture goes as [B, 1]."""
    array = array.reshape(len(array), -1) if array.ndim == 1 else array
    tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor
