"""ONNX Runtime on a real graph, and the batch contract to the last bit."""

import asyncio
import logging
import re
import shutil

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tiny_repository import graph, write_manifest, write_version

from serve.backend_ort import OrtBackend
from serve.errors import InferenceError, RepositoryError
from serve.model import load_model

PROMPTS = ["", "a red circle", "a blue square left", "left left left red a a a circle"]


@pytest.fixture(scope="module")
def backend(model):
    opened = OrtBackend(model, threads=1, measure_s=0)
    asyncio.run(opened.start())
    return opened


def feeds(model, prompt, seed):
    return {**model.tokenize(prompt), "noise": model.noise(seed)}


@examples(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(PROMPTS), st.integers(0, 5)), max_size=16, min_size=1)
)
def test_a_picture_is_the_same_to_the_bit_in_any_batch_and_slot(backend, model, rows):
    together = backend.run([feeds(model, *row) for row in rows])
    for row, picture in zip(rows, together, strict=True):
        assert np.array_equal(picture, backend.run([feeds(model, *row)])[0])


def test_the_picture_hangs_on_the_prompt_and_on_the_seed(backend, model):
    base, other_words, other_seed = (
        backend.run([feeds(model, *row)])[0]
        for row in [("a red circle", 1), ("a blue circle", 1), ("a red circle", 2)]
    )
    assert base.shape == (64, 64, 3)
    assert (base != other_words).mean() > 0.2
    assert (base != other_seed).mean() > 0.2


def test_a_restart_with_other_threads_gives_the_same_pictures(backend, model):
    again = OrtBackend(model, threads=2, measure_s=0)
    asyncio.run(again.start())
    rows = [feeds(model, prompt, 9) for prompt in PROMPTS]
    assert np.array_equal(backend.run(rows), again.run(rows))


def test_it_is_ready_between_start_and_close_and_measures_its_times(model, caplog):
    caplog.set_level(logging.INFO)

    async def scenario():
        backend = OrtBackend(model, threads=1, measure_s=0.3)
        states = [backend.ready]
        await backend.start()
        states.append(backend.ready)
        made = await asyncio.gather(*(backend.infer(feeds(model, "a", i)) for i in range(10)))
        wait_s = backend.wait_s(1)
        await backend.close()
        return [*states, backend.ready], made, wait_s

    states, made, wait_s = asyncio.run(scenario())
    assert states == [False, True, False]
    assert 0 < wait_s < 1
    assert len({one.pixels.tobytes() for one in made}) == 10
    assert re.search(r"tiny/1 draws 1 in \d+\.\d ms", caplog.text)


def test_closing_twice_or_before_the_start_does_nothing(model):
    asyncio.run(OrtBackend(model).close())


def start_error(folder) -> str:
    write_manifest(folder)
    with pytest.raises(RepositoryError) as caught:
        asyncio.run(OrtBackend(load_model(folder.parent.parent), threads=1).start())
    return str(caught.value)


def test_a_file_that_is_no_graph_is_one_sentence(tmp_path):
    folder = write_version(tmp_path)
    (folder / "model.onnx").write_bytes(b"this is no graph")
    assert start_error(folder).startswith(f"ONNX Runtime cannot load {folder / 'model.onnx'}: ")


def test_a_graph_with_other_inputs_than_the_manifest_is_refused(tmp_path):
    folder = write_version(tmp_path)
    changed = graph()
    changed.graph.input[2].name = "latents"
    for node in changed.graph.node:
        node.input[:] = ["latents" if name == "noise" else name for name in node.input]
    onnx.save(changed, folder / "model.onnx")
    assert "has inputs {" in start_error(folder)


def test_a_graph_that_makes_another_shape_fails_by_name(tmp_path):
    folder = write_version(tmp_path)
    output = {"name": "image", "dtype": "uint8", "shape": [None, 32, 32, 3]}
    write_manifest(folder, output=output, sizes=["32x32"])
    model = load_model(tmp_path)
    backend = OrtBackend(model, threads=1, measure_s=0)
    asyncio.run(backend.start())
    with pytest.raises(InferenceError, match=r"made \(1, 64, 64, 3\), the manifest says \(1, 32"):
        backend.run([feeds(model, "a", 1)])
    shutil.rmtree(tmp_path)
