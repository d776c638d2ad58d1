"""The file: standard operators, a dynamic batch, stated names, and nothing about its maker."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.errors import ExportError
from export.gate.session import open_session
from export.graph import to_onnx
from export.graph.to_onnx import OPSET, check_onnx, write_onnx
from export.graph.to_onnx import _in_order as in_order
from export.signature import Signature, Tensor


class Scale(nn.Module):
    """A graph of one weight: [B, 2] float32 -> [B, 2] uint8."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(512.0).reshape(256, 2))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return (noise * self.weight.sum(0)).clamp(0, 255).to(torch.uint8)


SMALL = Signature((Tensor("noise", "float32", (2,)),), Tensor("image", "uint8", (2,)))


def test_the_file_says_nothing_of_the_machine_or_the_source(run) -> None:
    content = (run.exported.folder / "model.onnx").read_bytes()
    source = str(Path(to_onnx.__file__).parent).encode()
    for trace in (b"site-packages", b".py", b"stack_trace", b"fx_node", b"/home", source):
        assert trace not in content, trace
    model = onnx.load_model_from_string(content)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not model.metadata_props


def test_the_graph_has_standard_operators_and_its_stated_opset(run) -> None:
    model = onnx.load(run.exported.folder / "model.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.functions) == 0


def test_inputs_and_output_are_as_stated_with_the_batch_open(run, signature: Signature) -> None:
    model = onnx.load(run.exported.folder / "model.onnx")
    check_onnx(run.exported.folder / "model.onnx", signature)
    values = [*model.graph.input, *model.graph.output]
    assert [v.name for v in values] == ["input_ids", "input_ids_2", "noise", "image"]
    assert {v.type.tensor_type.shape.dim[0].dim_param for v in values} == {"batch"}


def test_large_weights_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "INLINE_BYTES", 100)
    write_onnx(Scale().eval(), SMALL, tmp_path / "model.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    pictures = open_session(tmp_path / "model.onnx")({"noise": np.full((3, 2), 1e-3, np.float32)})
    np.testing.assert_array_equal(pictures, np.array([[65, 65]] * 3, np.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_transposed_weights_are_written_in_order(tmp_path: Path, monkeypatch, dtype) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(60_000.0).view(200, 300).to(dtype))

        def forward(self, noise: torch.Tensor) -> torch.Tensor:
            levels = noise.to(dtype)[:, None, :1].expand(-1, 3, 300) @ self.weight.t()
            return levels[:, 0, :2].float().to(torch.uint8)

    monkeypatch.setattr(to_onnx, "INLINE_BYTES", 100)
    written = []
    monkeypatch.setattr(to_onnx, "_in_order", lambda t: written.append(t) or in_order(t))
    graph = Product().eval()
    write_onnx(graph, SMALL, tmp_path / "model.onnx")
    weights = onnx.load(tmp_path / "model.onnx").graph.initializer
    (weight,) = (weight for weight in weights if len(weight.dims) == 2)
    assert len(written) > 0
    expected = graph.weight.detach().t().float().numpy()
    assert np.array_equal(onnx.numpy_helper.to_array(weight).astype(np.float32), expected)


def test_of_a_table_the_file_has_what_is_used(tmp_path: Path) -> None:
    """SD 3 has positions for pictures of nine times the pixels: 100 MB and more."""

    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(180_000.0).view(1, 90_000, 2))

        def forward(self, noise: torch.Tensor) -> torch.Tensor:
            part = self.table.reshape(1, 300, 300, 2)[:, 100:101, 2:3, :].reshape(-1, 2)
            return (noise + part).to(torch.uint8)

    file = tmp_path / "model.onnx"
    write_onnx(Middle().eval(), SMALL, file)
    assert file.stat().st_size < 2_000
    pictures = open_session(file)({"noise": np.full((3, 2), -60_000, np.float32)})
    np.testing.assert_array_equal(pictures, np.array([[4, 5]] * 3, np.uint8))


def test_a_graph_whose_batch_is_fixed_fails_the_check(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    write_onnx(Scale().eval(), SMALL, file)
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, file)
    with pytest.raises(AssertionError, match="the batch of noise is fixed at 2"):
        check_onnx(file, SMALL)


def test_an_opset_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset is 17; allowed are 18, 21, 23"):
        write_onnx(Scale().eval(), SMALL, tmp_path / "model.onnx", 17)


def test_nodes_carry_the_name_of_their_part(run) -> None:
    nodes = onnx.load(run.exported.folder / "model.onnx").graph.node
    parts = {node.name.split("/")[0] for node in nodes if "/" in node.name}
    assert {"text_encoder", "text_encoder_2", "unet", "vae.decoder"} <= parts
    norms = [node.name for node in nodes if node.op_type == "GroupNormalization"]
    assert all(name.startswith(("unet/", "vae.decoder/")) for name in norms)


def test_a_large_batch_of_large_pictures_does_not_stop_the_trace(tmp_path: Path) -> None:
    """Upsampling asks whether a tensor exceeds 2^31 values: the batch must stay open then too."""
    large = Signature((Tensor("noise", "float32", (40, 1024, 1024)),), SMALL.output)

    class Grow(nn.Module):
        def forward(self, noise: torch.Tensor) -> torch.Tensor:
            if noise.numel() > 2**31:
                noise = noise.contiguous()
            return noise[:, :2, 0, 0].clamp(0, 255).to(torch.uint8)

    write_onnx(Grow().eval(), large, tmp_path / "model.onnx")
