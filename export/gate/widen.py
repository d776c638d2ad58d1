"""A bfloat16 graph made float32, for a runtime that has no bfloat16 kernels: ONNX Runtime's CPU.

The weights keep their bfloat16 values, everything between them is computed in float32. So a graph's
wiring, names and batches can be measured on a CPU; what bfloat16 rounds on the way cannot.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

NARROW, WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT


def widen(file: Path, out: Path) -> int:
    """Write `file` to `out` without bfloat16, and give the number of weights that were turned.

    Weights that lie beside `file` are written beside `out`, as `<out>.data`.
    """
    model = onnx.load(str(file))
    turned = 0
    for weight in model.graph.initializer:
        if weight.data_type == NARROW:
            weight.CopyFrom(_wide(weight))
            turned += 1
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == NARROW:
                attribute.i = WIDE
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == NARROW:
                attribute.t.CopyFrom(_wide(attribute.t))
    del model.graph.value_info[:]
    beside = file.with_name(f"{file.name}.data").is_file()
    onnx.save(model, str(out), save_as_external_data=beside, location=f"{out.name}.data")
    onnx.checker.check_model(str(out), full_check=True)
    return turned


def _wide(tensor: TensorProto) -> TensorProto:
    """The same values under the same name, in float32."""
    values = numpy_helper.to_array(tensor).astype(np.float32)
    return numpy_helper.from_array(values, tensor.name)
