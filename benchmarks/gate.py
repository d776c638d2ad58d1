"""What the gate's limits stand on, and whether it refuses what is good.

    python benchmarks/gate.py rounding --student DIR [--rows 32]
    python benchmarks/gate.py exports [--count 50] [--weights 1]

`rounding` draws the same pictures in torch with parts in float16 and bfloat16 and compares them
with float32. `exports` makes small random students of different widths and schedules, exports each
by the ordinary exporter and puts it through its gate; with `--weights N` each exported file is
gated N times, its weights drawn anew in the file and in torch alike: an export takes longer than a
gate.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from onnx import numpy_helper
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from export.errors import ParityError
from export.gate.cases import Pictures, plan
from export.gate.measure import differences
from export.gate.parity import Parity
from export.gate.session import open_session
from export.gate.verify import draw_cases, verify
from export.graph.module import OneStepGraph
from export.graph.to_onnx import write_onnx
from export.model.student import Student, load_student
from export.signature import Signature, text_to_image
from export.tasks.subjects import pipeline_encoder, prompts
from export.tasks.text_task import TextTask

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
PARTS = {  # text encoders, UNet, decoder
    "encoders and UNet float16": (F16, F16, F32),
    "encoders and UNet bfloat16": (BF16, BF16, F32),
    "decoder float16": (F32, F32, F16),
    "decoder bfloat16": (F32, F32, BF16),
    "all float16": (F16, F16, F16),
    "float16, decoder bfloat16": (F16, F16, BF16),
    "all bfloat16": (BF16, BF16, BF16),
}
ROWS, MAX_BATCH = 8, 4


def rounding(student: Path, rows: int) -> None:
    """Print a line per choice of types."""
    loaded = load_student(student)
    signature = text_to_image(loaded.latent_channels, loaded.latent_size, loaded.size_px)
    cases = plan(signature, prompts(pipeline_encoder(loaded.pipeline)), rows)
    tensors = {name: torch.from_numpy(array).split(1) for name, array in cases.feeds.items()}
    feeds = [{name: parts[row] for name, parts in tensors.items()} for row in range(rows)]
    exact = draw_in(loaded, feeds, (F32, F32, F32))
    print(f"{rows} pictures, one step at {loaded.step.timestep}, against float32:")
    print(f"{'':28} max  mean, all  mean, worst  differing")
    for name, dtypes in PARTS.items():
        found = differences(draw_in(loaded, feeds, dtypes), exact)
        largest, mean, worst = found[:, 0].max(), found[:, 1].mean(), found[:, 1].max()
        print(f"{name:28} {largest:3.0f} {mean:10.4f} {worst:12.4f} {found[:, 2].mean():10.2%}")


@torch.no_grad()
def draw_in(
    student: Student,
    feeds: Sequence[Mapping[str, torch.Tensor]],
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
) -> Pictures:
    """One picture at a time, [N, H, W, 3]; the step's formula stays in float32."""
    pipeline = copy.deepcopy(student.pipeline)
    text, unet, vae = dtypes
    for part, dtype in (
        (pipeline.text_encoder, text),
        (pipeline.text_encoder_2, text),
        (pipeline.unet, unet),
        (pipeline.vae, vae),
    ):
        part.to(dtype)
    graph = OneStepGraph(replace(student, pipeline=pipeline))
    return np.concatenate([graph(**row).numpy() for row in feeds])


def exports(count: int, weights: int) -> int:
    """Gate `count` students, `weights` of them in each exported file; the number refused."""
    refused, worst = 0, np.zeros(2)
    for seed in range(0, count, weights):
        with tempfile.TemporaryDirectory() as folder:
            described = save_random_student(Path(folder) / "student", seed)
            student, signature, file = write_graph(Path(folder))
            for number in range(seed, min(seed + weights, count)):
                start = time.monotonic()
                if number > seed:
                    redraw(student, file, number)
                try:
                    parity = gate(student, signature, file)
                except ParityError as error:
                    refused += 1
                    print(f"{number:3d}  REFUSED: {error}", flush=True)
                    continue
                every = [found for batch in parity.batches for found in batch.against.values()]
                figures = max(f.max_levels for f in every), max(f.differing for f in every)
                worst = np.maximum(worst, figures)
                print(
                    f"{number:3d}  {described}: max {figures[0]}, differing {figures[1]:.4%}, "
                    f"{parity.level}, gate {time.monotonic() - start:.1f} s",
                    flush=True,
                )
    print(f"{refused} of {count} refused; max {worst[0]:.0f} levels, differing {worst[1]:.4%}")
    return refused


def write_graph(folder: Path) -> tuple[Student, Signature, Path]:
    """Load and export, as the exporter does."""
    student = load_student(folder / "student")
    signature = text_to_image(student.latent_channels, student.latent_size, student.size_px)
    write_onnx(OneStepGraph(student), signature, folder / "model.onnx")
    return student, signature, folder / "model.onnx"


def gate(student: Student, signature: Signature, file: Path) -> Parity:
    """The exporter's gate: draw the references, measure."""
    cases = draw_cases(TextTask(student, OneStepGraph(student)), signature, ROWS)
    return verify(open_session(file, torch.get_num_threads()), cases, MAX_BATCH)


@torch.no_grad()
def redraw(student: Student, file: Path, seed: int) -> None:
    """Shuffle the values of every weight matrix that has kept its name, here and in the file."""
    rng, model = np.random.default_rng(seed), onnx.load(file)
    weights = dict(OneStepGraph(student).named_parameters())
    for tensor in model.graph.initializer:
        if tensor.name in weights and len(tensor.dims) > 1:
            old = numpy_helper.to_array(tensor)
            new = rng.permutation(old.reshape(-1)).reshape(old.shape)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
            weights[tensor.name].copy_(torch.from_numpy(new))
    onnx.save(model, file)


def save_random_student(folder: Path, seed: int) -> str:
    """A small SDXL of random widths, depth, timestep and prediction type; what was drawn."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    width, text = int(rng.choice([16, 32, 48])), int(rng.choice([16, 32, 64]))
    timestep = int(rng.choice([399, 700, 800, 999]))
    kind = str(rng.choice(["epsilon", "v_prediction", "sample"]))
    layers, size = int(rng.integers(1, 3)), int(rng.choice([8, 12, 16]))
    tokenizer = small_tokenizer()
    unet, vae = random_unet(width, text, layers, size), random_vae(int(rng.choice([8, 16])))
    scale_to_unit(unet, vae, size)
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config(tokenizer, text)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, text)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=kind,
            timestep_spacing="leading",
            steps_offset=timestep,
            set_alpha_to_one=True,
            clip_sample=False,
        ),
        add_watermarker=False,
    ).save_pretrained(folder)
    return f"width {width}, text {text}, layers {layers}, {size * 8} px, {kind} at {timestep}"


def small_tokenizer() -> CLIPTokenizer:
    """Bytes, their word ends and the two special tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=77)


def text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def random_unet(width: int, text: int, layers: int, size: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=layers,
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=2 * text,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )


def random_vae(width: int) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=64,
        block_out_channels=(width, width, 2 * width, 2 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.13025,
    )


@torch.no_grad()
def scale_to_unit(unet: UNet2DConditionModel, vae: AutoencoderKL, size: int) -> None:
    """Predictions of deviation 1 and pictures of deviation 0.4, as a trained model's."""
    noise = torch.randn(2, 4, size, size)
    added = {"text_embeds": torch.randn(2, 24), "time_ids": torch.full((2, 6), 8.0 * size)}
    text = torch.randn(2, 77, unet.config.cross_attention_dim)
    predicted = unet(noise, 999, encoder_hidden_states=text, added_cond_kwargs=added).sample
    unet.conv_out.weight.div_(predicted.std())
    vae.decoder.conv_out.weight.mul_(0.4 / vae.decode(noise / 0.13025).sample.std())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    first = commands.add_parser("rounding")
    first.add_argument("--student", type=Path, required=True)
    first.add_argument("--rows", type=int, default=32)
    second = commands.add_parser("exports")
    second.add_argument("--count", type=int, default=50)
    second.add_argument("--weights", type=int, default=1)
    args = parser.parse_args()
    if args.command == "rounding":
        rounding(args.student, args.rows)
        return 0
    return exports(args.count, args.weights)


if __name__ == "__main__":
    raise SystemExit(main())
