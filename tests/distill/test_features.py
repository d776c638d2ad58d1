"""Hidden states read from a real small UNet: which, in what shape, at what cost."""

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from distill.features import FeatureExtractor

LAYERS = ("down_blocks.1", "mid_block", "up_blocks.0")
BLOCKS = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6,
        norm_num_groups=4,
        attention_head_dim=4,
    )
    return model.requires_grad_(False)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def forward_of(unet: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: unet(x, torch.tensor(10), draw(len(x), 3, 6))


def ran(unet: nn.Module, call: Callable[[], object]) -> list[str]:
    """Names of the blocks that start running during a call."""
    names: list[str] = []
    hooks = [
        unet.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: names.append(name))
        for name in BLOCKS
    ]
    call()
    for hook in hooks:
        hook.remove()
    return names


def test_features_are_the_blocks_hidden_states_flattened(unet: UNet2DConditionModel) -> None:
    x = draw(2, 4, 8, 8)
    seen: dict[str, Tensor] = {}
    hooks = [
        unet.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update(
                {name: out[0] if isinstance(out, tuple) else out}
            )
        )
        for name in LAYERS
    ]
    forward_of(unet, x)()
    for hook in hooks:
        hook.remove()
    features = FeatureExtractor(unet, LAYERS)(forward_of(unet, x))
    assert list(features) == list(LAYERS)
    for name in LAYERS:
        assert torch.equal(features[name][:, 0], seen[name].flatten(1))
        assert features[name].shape == (2, 1, seen[name][0].numel())


def test_maps_are_average_pooled(unet: UNet2DConditionModel) -> None:
    x = draw(2, 4, 8, 8)
    whole = FeatureExtractor(unet, ["mid_block"])(forward_of(unet, x))["mid_block"]
    pooled = FeatureExtractor(unet, ["mid_block"], pool=2)(forward_of(unet, x))["mid_block"]
    expected = whole.view(2, 16, 2, 2, 2, 2).mean(dim=(3, 5)).view(2, 1, -1)
    assert torch.allclose(pooled, expected, atol=1e-6)


def test_a_pool_that_does_not_divide_names_layer_map_and_pool(unet: UNet2DConditionModel) -> None:
    extract = FeatureExtractor(unet, ["mid_block"], pool=3)
    with pytest.raises(ValueError, match=r"pool is 3, .* layer 'mid_block' of 4x4") as error:
        extract(forward_of(unet, draw(1, 4, 8, 8)))
    assert not any(module._forward_hooks for module in unet.modules())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("layers", "count"), [(["down_blocks.0"], 1), (["mid_block", "down_blocks.1"], 3), (LAYERS, 4)]
)
def test_the_pass_stops_after_the_last_layer(
    unet: UNet2DConditionModel, layers: list[str], count: int
) -> None:
    extract = FeatureExtractor(unet, layers)
    forward = forward_of(unet, draw(1, 4, 8, 8))
    assert ran(unet, lambda: extract(forward)) == list(BLOCKS[:count])
    assert ran(unet, forward) == list(BLOCKS)  # and leaves nothing behind that stops the next


def test_gradient_passes_through_the_frozen_teacher(unet: UNet2DConditionModel) -> None:
    x = draw(2, 4, 8, 8).requires_grad_()
    features = FeatureExtractor(unet, LAYERS, pool=2)(forward_of(unet, x))
    sum(f.square().mean() for f in features.values()).backward()
    assert x.grad is not None
    assert (x.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_the_sample_is_taken_whole_and_alone_costs_no_pass(unet: UNet2DConditionModel) -> None:
    x = draw(2, 4, 8, 8)
    extract = FeatureExtractor(unet, ["sample"], pool=4)
    forward = forward_of(unet, x)
    assert ran(unet, lambda: extract(forward, x)) == []
    assert torch.equal(extract(forward, x)["sample"][:, 0], x.flatten(1))
    both = FeatureExtractor(unet, ["sample", "mid_block"])(forward, x.bfloat16())
    assert list(both) == ["sample", "mid_block"]
    assert both["sample"].dtype == torch.float32
    with pytest.raises(AssertionError, match="none was given"):
        extract(forward)


def test_a_slash_cuts_a_map_in_windows(unet: UNet2DConditionModel) -> None:
    x = draw(2, 4, 8, 8)
    cut = FeatureExtractor(unet, ["sample/2", "mid_block", "mid_block/1"])(forward_of(unet, x), x)
    assert cut["sample/2"].shape == (2, 16, 16)
    assert torch.equal(cut["sample/2"][:, 5], x[:, :, 2:4, 2:4].flatten(1))  # second row and column
    hidden = cut["mid_block"].view(2, 16, 4, 4)
    assert torch.equal(cut["mid_block/1"], hidden.flatten(2).transpose(1, 2))


def test_a_window_that_does_not_divide_names_layer_and_map(unet: UNet2DConditionModel) -> None:
    extract = FeatureExtractor(unet, ["mid_block/3"])
    with pytest.raises(ValueError, match=r"layer 'mid_block/3' .* windows of 3x3, .* it is 4x4"):
        extract(forward_of(unet, draw(1, 4, 8, 8)))


@pytest.mark.parametrize("layer", ["mid_block/", "mid_block/0", "mid_block/two", "sample/-1"])
def test_a_window_is_a_whole_number(unet: UNet2DConditionModel, layer: str) -> None:
    with pytest.raises(ValueError, match=f"layer '{layer}': after the slash stands a window of"):
        FeatureExtractor(unet, [layer])


def test_tokens_of_a_transformer_are_flattened_unpooled() -> None:
    config = CLIPTextConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=5,
    )
    model = CLIPTextModel(config).eval()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    first = next(name for name, _ in model.named_modules() if name.endswith("encoder"))
    extract = FeatureExtractor(model, [first], pool=4)
    tokens = extract(lambda: model(ids))[first]
    assert tokens.shape == (1, 1, 5 * 8)


def test_half_precision_becomes_single() -> None:
    model = nn.Sequential(nn.Linear(3, 4)).bfloat16()
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    assert FeatureExtractor(model, ["0"])(lambda: model(x))["0"].dtype == torch.float32


class Twice(nn.Module):
    """Runs its one block twice, then fails if it gets that far."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.block(x)
        self.block(x + 1)
        self.last(x)
        raise RuntimeError("ran to its end")


def test_a_block_that_runs_twice_counts_by_its_first_output() -> None:
    model, x = Twice(), torch.zeros(1, 2)
    features = FeatureExtractor(model, ["block", "last"])(lambda: model(x))
    assert torch.equal(features["block"][:, 0], x)


def test_an_error_of_the_model_passes_and_hooks_are_gone() -> None:
    model = Twice()
    extract = FeatureExtractor(model, ["block", "last"])

    def fail() -> None:
        raise RuntimeError("ran to its end")

    with pytest.raises(RuntimeError, match="ran to its end"):
        extract(fail)
    assert not model.block._forward_hooks


def test_a_layer_that_is_never_run_is_named(unet: UNet2DConditionModel) -> None:
    extract = FeatureExtractor(unet, ["down_blocks", "mid_block"])
    with pytest.raises(ValueError, match="layers down_blocks exist, but"):
        extract(forward_of(unet, draw(1, 4, 8, 8)))


def test_a_layer_without_a_tensor_is_named() -> None:
    class Words(nn.Module):
        def forward(self, x: Tensor) -> list[str]:
            return ["no tensor"]

    model = nn.Sequential(Words())
    with pytest.raises(ValueError, match="layer '0' returns str"):
        FeatureExtractor(model, ["0"])(lambda: model(torch.zeros(1)))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["middle"], "'middle' does not exist; there are down_blocks.0, down_blocks.1, up_blocks"),
        (["down_blocks.9"], "'down_blocks.9' does not exist; there are down_blocks.0, down_bl"),
        (["mid_block.foo"], "'mid_block.foo' does not exist; there are mid_block.attentions.0"),
        (["conv_in.foo"], "'conv_in.foo' does not exist; there are down_blocks.0, .*, sample$"),
        ([], "layers is empty: name some of down_blocks.0"),
        (["mid_block", "sample", "mid_block"], "names mid_block more than once"),
    ],
)
def test_wrong_layers_are_answered_with_those_that_exist(
    unet: UNet2DConditionModel, layers: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(unet, layers)


def test_a_long_list_of_layers_is_cut_short() -> None:
    model = nn.Sequential(*[nn.Identity() for _ in range(40)])
    with pytest.raises(ValueError, match=r"23 and 17 more$"):
        FeatureExtractor(model, ["x"])


def test_a_pool_of_zero_is_refused(unet: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match="pool is 0"):
        FeatureExtractor(unet, ["mid_block"], pool=0)
