"""Versions that cannot be served: the old one goes on, and the bad one is named everywhere."""

import json
import logging

import onnx
import pytest
from reloading import draw, on
from tiny_repository import graph, publish, write_manifest


def half_written(folder):
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[:-10])
    return "it is half written"


def changed(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"digest": "0" * 64}))
    return "digest does not match files"


def no_graph(folder):
    (folder / "model.onnx").write_bytes(b"nothing of the kind")
    write_manifest(folder)
    return "ONNX Runtime cannot load"


def other_inputs(folder):
    made = graph()
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    onnx.save(made, folder / "model.onnx")
    write_manifest(folder)
    return "has inputs"


def fails_when_it_runs(folder):
    made = graph()
    for constant in made.graph.initializer:
        if constant.name == "latent":  # 256 values do not fit into [-1, 5, 8, 8]
            constant.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constant)))
            constant.raw_data = (
                constant.raw_data[:8] + (5).to_bytes(8, "little") + constant.raw_data[16:]
            )
    onnx.save(made, folder / "model.onnx")
    write_manifest(folder)
    return "cannot"


def no_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")
    write_manifest(folder)
    return "cannot be opened"


BAD = [half_written, changed, no_graph, other_inputs, fails_when_it_runs, no_tokenizer]


@pytest.mark.parametrize("spoil", BAD)
def test_a_bad_version_leaves_the_old_one_serving_and_is_named_everywhere(root, spoil, caplog):
    async def scenario(client, repository):
        sentence = spoil(publish(root, version=2))
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                await repository.look()
        answers = [await client.get(path) for path in ("/readyz", "/v1/models", "/metrics")]
        return sentence, await draw(client), *answers

    sentence, picture, ready, models, metrics = on(root, scenario)
    assert (picture.status_code, picture.headers["x-model"]) == (200, "tiny/1")
    assert ready.status_code == 200
    assert ready.text.startswith("ready\ntiny/2 is refused: ")
    refused = models.json()["data"][0]["refused"]
    assert refused["version"] == 2
    assert sentence in refused["reason"]
    assert refused["reason"] in ready.text
    assert caplog.text.count("tiny/2 is refused: ") == 1
    assert 'reloads_total{model="tiny",outcome="refused"} 1.0' in metrics.text


def test_a_bad_version_is_tried_again_once_its_files_have_changed_and_are_quiet(root, caplog):
    async def scenario(client, repository):
        folder = publish(root, version=2)
        half_written(folder)
        seen = []
        with caplog.at_level(logging.WARNING):
            for step in ("refused", "growing", "whole", "quiet"):
                if step == "growing":
                    (folder / "model.onnx").write_bytes(b"more")
                if step == "whole":
                    (folder / "model.onnx").write_bytes(graph().SerializeToString())
                await repository.look()
                seen.append((repository.get().version, len(repository.remarks())))
        return seen

    assert on(root, scenario) == [(1, 1), (1, 1), (1, 1), (2, 0)]
    assert caplog.text.count("is refused") == 1


def test_the_newest_good_version_is_taken_where_a_newer_one_is_bad(root):
    async def scenario(client, repository):
        publish(root, version=2)
        half_written(publish(root, version=3))
        await repository.look()
        return repository.get().version, repository.remarks()

    version, (remark,) = on(root, scenario)
    assert version == 2
    assert remark.startswith("tiny/3 is refused: ")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            "version_policy { specific { versions: 9 } }",
            "serves the versions 9; the folder holds 1",
        ),
        ("version_policy {", "the text ends inside a field"),
    ],
)
def test_a_config_that_cannot_be_obeyed_changes_nothing_and_is_named(
    root, config, sentence, caplog
):
    async def scenario(client, repository):
        (root / "tiny" / "config.pbtxt").write_text(config)
        for _ in range(2):
            await repository.look()
        refused = (await client.get("/v1/models")).json()["data"][0]["refused"]
        ready = (await client.get("/readyz")).text
        (root / "tiny" / "config.pbtxt").unlink()
        await repository.look()
        return (await draw(client)).headers["x-model"], refused, ready, repository.remarks()

    label, refused, ready, remarks = on(root, scenario)
    assert (label, refused["version"], remarks) == ("tiny/1", None, [])
    assert sentence in refused["reason"]
    assert "tiny is refused: " in ready
    assert caplog.text.count("tiny is refused: ") == 1
