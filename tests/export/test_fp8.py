"""FP8: what is asked of ModelOpt, and a plain sentence where it is missing."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.engine.fp8 import denoiser_nodes, quantize_fp8
from export.errors import PrecisionError

FEEDS = {"noise": np.zeros((2, 4, 8, 8), np.float32)}


def documented(
    onnx_path: str,
    quantize_mode: str = "int8",
    calibration_data=None,
    calibration_method: str | None = None,
    calibration_eps: tuple[str, ...] = ("cpu", "cuda:0", "trt"),
    op_types_to_quantize: list[str] | None = None,
    nodes_to_quantize: list[str] | None = None,
    use_external_data_format: bool = False,
    output_path: str | None = None,
    high_precision_dtype: str = "fp16",
    mha_accumulation_dtype: str = "fp16",
) -> None:
    """The parameters of ModelOpt 0.47 that are used, by its documentation; copies the file."""
    assert quantize_mode in ("int8", "int4", "fp8")
    assert calibration_method in ("entropy", "max")
    assert high_precision_dtype in ("fp32", "fp16", "bf16")
    assert mha_accumulation_dtype in ("fp32", "fp16")
    assert set(calibration_data) == {"noise"}
    assert op_types_to_quantize == ["Conv", "Gemm", "MatMul"]
    assert calibration_eps[0] == "cuda:0"
    assert not use_external_data_format
    model = onnx.load(onnx_path)
    names = [node.name for node in model.graph.node]
    model.doc_string = " ".join(
        name for name in names if any(re.fullmatch(n, name) for n in nodes_to_quantize or [])
    )
    onnx.save(model, output_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three nodes, of which one is a matrix product of the UNet."""
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["a"], name="text_encoder/node_MatMul_1"),
        helper.make_node("MatMul", ["a", "x"], ["b"], name="unet/node_MatMul_2"),
        helper.make_node("Add", ["b", "x"], ["y"], name="unet/node_add"),
    ]
    info = helper.make_tensor_value_info
    square = [info(name, TensorProto.FLOAT, [2, 2]) for name in "xy"]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", square[:1], square[1:])),
        tmp_path / "model.onnx",
    )
    return tmp_path / "model.onnx"


def test_only_the_unets_products_are_turned(file: Path, tmp_path: Path) -> None:
    quantize_fp8(file, tmp_path / "fp8.onnx", FEEDS, documented)
    assert onnx.load(tmp_path / "fp8.onnx").doc_string == "unet/node_MatMul_2"


def test_a_transformers_products_are_turned_as_a_unets_are() -> None:
    names = ["transformer/node_Gemm_1", "text_encoder_3/node_MatMul_1", "unet/node_MatMul_2"]
    nodes = [helper.make_node(name.split("_")[-2], ["x"], ["y"], name=name) for name in names]
    assert denoiser_nodes(nodes) == [names[0], names[2]]


def test_an_exported_graph_names_its_unet(run) -> None:
    nodes = onnx.load(run.exported.folder / "model.onnx").graph.node
    ours = denoiser_nodes(nodes)
    kinds = {node.op_type for node in nodes if node.name in set(ours)}
    assert kinds == {"Conv", "Gemm", "MatMul"}
    assert 30 < len(ours) < sum(node.op_type in kinds for node in nodes)


def test_a_missing_modelopt_is_one_sentence(file: Path, tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match=r"quantize is fp8, which needs NVIDIA ModelOpt"):
        quantize_fp8(file, tmp_path / "fp8.onnx", FEEDS)


def test_a_file_without_a_unet_or_a_result_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="ModelOpt wrote no"):
        quantize_fp8(file, tmp_path / "fp8.onnx", FEEDS, lambda **_: None)
    model = onnx.load(file)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, file)
    with pytest.raises(PrecisionError, match="has no node of the unet"):
        quantize_fp8(file, tmp_path / "fp8.onnx", FEEDS, documented)
