"""ONNX Runtime on the CPU, as a function from inputs to pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as states

from export.errors import ExportError
from export.gate.cases import Feeds, Infer, Pictures

FAILURES = (
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoSuchFile,
    states.NotImplemented,
    states.RuntimeException,
)
PASSED_ON = {"Cast", "Transpose", "Round", "Mul"}  # between the clamp and the output
FOLDER_KEY = "session.model_external_initializers_file_folder_path"

Floats = NDArray[np.floating[Any]]
Probe = Callable[[Feeds], Floats]  # the picture before it is clamped, as floats


def open_session(file: Path, threads: int = 0, optimised: bool = True) -> Infer:
    """Load the graph; `threads` 0 leaves their number to ONNX Runtime.

    Without `optimised` every node runs as the file has it: slower, and free of the runtime's own
    rewriting, hence a reference for it.
    """
    session = _session(str(file), file, threads, optimised)

    def infer(feeds: Feeds) -> Pictures:
        pictures: Pictures = session.run(None, dict(feeds))[0]
        return pictures

    return infer


def open_probe(file: Path, threads: int = 0) -> Probe | None:
    """The same graph up to its clamp, where values that are not finite still show.

    None if the graph does not end as ours do: clamp, scale, round, cast.
    """
    model = onnx.load(str(file), load_external_data=False)
    name = _before_clamp(model.graph)
    if name is None:
        return None
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = _session(model.SerializeToString(), file, threads, optimised=True)

    def probe(feeds: Feeds) -> Floats:
        floats: Floats = session.run(None, dict(feeds))[0]
        return floats

    return probe


def _session(
    model: str | bytes, file: Path, threads: int, optimised: bool
) -> onnxruntime.InferenceSession:
    """Open a file or its changed text; `ExportError` names the file and ONNX Runtime's reason."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if isinstance(model, bytes):
        options.add_session_config_entry(FOLDER_KEY, str(file.parent))
    if not optimised:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    try:
        return onnxruntime.InferenceSession(
            model, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except FAILURES as error:
        reason = str(error).strip().split("\n")[0]
        raise ExportError(f"ONNX Runtime cannot open {file}: {reason}") from error


def _before_clamp(graph: Any) -> str | None:
    """Walk back from the one output over scale, round and cast to what the clamp is given."""
    makers = {output: node for node in graph.node for output in node.output}
    name = graph.output[0].name
    while (node := makers.get(name)) is not None:
        if node.op_type == "Clip":
            return str(node.input[0])
        if node.op_type not in PASSED_ON:
            return None
        name = node.input[0]
    return None
