"""What a real Triton server makes of our configs: the `python` one answers, to the last bit."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from running_triton import DidNotStartError, Server, running
from shipped_model import Feeds, drawn_here, feeds, publish_into, rescale
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from export.errors import ParityError
from export.repository.publish import staging
from export.repository.serving import rollback
from export.repository.triton_config import ServingOptions
from export.repository.workplace import PREFIX

pytestmark = pytest.mark.triton


def draw(server: Server, model: str, inputs: Feeds, version: str = "", timeout_us=None):
    """One request to the server: [B, H, W, 3] uint8."""
    sent = []
    for name, array in inputs.items():
        sent.append(triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        sent[-1].set_data_from_numpy(array)
    answer = server.client.infer(model, sent, model_version=version, timeout=timeout_us)
    return answer.as_numpy("image")


def draw_at_once(server: Server, model: str, requests: list[Feeds]) -> list[object]:
    """All requests from threads of their own; a picture, or the server's refusal, for each."""
    answers: list[object] = [None] * len(requests)
    together = threading.Barrier(len(requests))

    def ask(index: int) -> None:
        together.wait()
        try:
            answers[index] = draw(server, model, requests[index])
        except InferenceServerException as error:
            answers[index] = str(error.message())

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def executed(server: Server, model: str, pictures: int) -> dict[int, int]:
    """How often the server has run each batch size, once it has counted all `pictures`."""
    for _ in range(100):  # an answer leaves before it is counted
        (stats,) = server.client.get_inference_statistics(model).model_stats
        counts = {entry.batch_size: entry.compute_infer.count for entry in stats.batch_stats}
        if sum(size * count for size, count in counts.items()) >= pictures:
            break
        time.sleep(0.02)
    return counts


def test_the_python_config_answers_bitwise_at_every_batch_size_after_its_warm_up(
    server, publish_shapes
) -> None:
    folder = publish_shapes("answers", options=ServingOptions(threads=1)).folder
    server.load("answers")
    for batch in range(1, 9):
        assert f"warmup sample '64x64, batch {batch}'" in server.log()
    inputs = feeds(8)
    alone = drawn_here(folder, inputs)
    assert len({picture.tobytes() for picture in alone}) == 8
    for rows in range(1, 9):
        drawn = draw(server, "answers", {name: a[:rows] for name, a in inputs.items()})
        np.testing.assert_array_equal(drawn, alone[:rows])


def test_requests_of_several_callers_share_a_batch_and_keep_their_pictures(
    server, publish_shapes
) -> None:
    folder = publish_shapes("shared", service_ms={1: 900.0, 4: 904.0}).folder
    server.load("shared")
    requests = [feeds(1, seed) for seed in range(8)]
    answers = draw_at_once(server, "shared", requests)
    for request, drawn in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(drawn, drawn_here(folder, request))
    assert executed(server, "shared", 8) == {4: 2}


def test_where_no_batch_pays_pictures_go_one_by_one(server, publish_shapes) -> None:
    publish_shapes("single", service_ms={1: 10.0, 2: 21.0, 4: 44.0})
    server.load("single")
    draw_at_once(server, "single", [feeds(1, seed) for seed in range(8)])
    assert executed(server, "single", 8) == {1: 8}


def test_what_waits_too_long_is_rejected_and_a_full_queue_refuses_what_comes_next(
    server, publish_shapes
) -> None:
    options = ServingOptions(threads=1, warm_up=False, max_queue=2)
    publish_shapes("waits", options=options, service_ms={1: 900.0, 8: 904.0})
    server.load("waits")
    with pytest.raises(InferenceServerException, match=r"[Tt]imeout expired"):
        draw(server, "waits", feeds(1), timeout_us=20_000)
    answers = draw_at_once(server, "waits", [feeds(1, seed) for seed in range(6)])
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert len(refused) == 4
    assert all("maximum queue size" in answer for answer in refused)


def test_the_newest_version_is_served_beside_the_one_before_until_it_is_rolled_back(
    server, publish_shapes
) -> None:
    folders = [publish_shapes("rolled", scale=scale).folder for scale in (1.0, 0.5)]
    inputs = feeds(1)
    old, new = (drawn_here(folder, inputs) for folder in folders)
    assert (old != new).any()
    for version, picture in ((2, new), (1, old)):
        if version == 1:
            assert rollback(server.repository, "rolled") == 1
        server.load("rolled")
        np.testing.assert_array_equal(draw(server, "rolled", inputs), picture)
        ready = [server.client.is_model_ready("rolled", str(number)) for number in (1, 2)]
        assert ready == [True, version == 2]


def test_the_gate_passes_a_server_that_draws_the_graph_and_refuses_one_that_does_not(
    server, publish_shapes
) -> None:
    from export.gate.published import (  # brings torch, which only this test needs
        Request,
        verify_repository,
    )

    version = publish_shapes("gated").folder
    server.load("gated")
    request = Request(against="triton", url=server.url, rows=2, threads=1)

    def verify():
        return verify_repository(server.repository, "gated", request=request, report=lambda _: None)

    assert verify().level == "bitwise"
    graph, right = version / "model.onnx", (version / "model.onnx").read_bytes()
    rescale(graph, 0.5)
    server.client.unload_model("gated")
    server.load("gated")
    graph.write_bytes(right)
    with pytest.raises(ParityError, match="the server does not draw the pictures"):
        verify()


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_the_other_runtimes_get_as_far_as_their_missing_back_end(
    server, publish_shapes, runtime: str
) -> None:
    options, times = ServingOptions(instances=2, versions=3), {1: 10.0, 2: 15.0, 4: 28.0}
    publish_shapes(runtime, runtime, options=options, service_ms=times)
    refusal = server.refusal(runtime)
    assert f"unable to find backend library for backend '{runtime}'" in refusal


BROKEN = {
    "misnamed": ('name: "', 'name: "not-', "directory name must equal model name"),
    "negative": ("max_batch_size: 8", "max_batch_size: -1", "must be non-negative"),
    "too-large": ("batch_size: 4", "batch_size: 9", "preferred size must be <= max batch size"),
    "mistyped": ("TYPE_INT64", "TYPE_LETTERS", "failed to read text proto"),
    "unwarmed": ('key: "noise"', 'key: "noises"', "expected 3 inputs but got 2 inputs"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_is_refused_by_the_server(server, publish_shapes, name: str) -> None:
    found, broken, sentence = BROKEN[name]
    options = ServingOptions(threads=1)
    model = publish_shapes(name, options=options, service_ms={1: 9, 4: 9}).folder.parent
    text = (model / "config.pbtxt").read_text()
    assert found in text
    (model / "config.pbtxt").write_text(text.replace(found, broken))
    assert name in server.refusal(name)
    (line, *_) = [
        line for line in server.log().splitlines() if f"'{name}'" in line and sentence in line
    ]
    assert line.startswith("E")


@pytest.mark.parametrize("name", ["0", "a", "a-b_c", "9_-", "x" * 100])
def test_every_model_name_that_we_allow_is_one_for_triton(
    server, publish_shapes, name: str
) -> None:
    publish_shapes(name, "onnxruntime")
    assert "unable to find backend library" in server.refusal(name)


def test_a_server_starts_while_a_version_is_being_made(environment: None, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    publish_into(repository, "steady")
    with staging(repository) as staged:
        (staged / "model.onnx").write_bytes(b"half a graph")
        with running(repository, tmp_path / "log.txt") as server:
            assert draw(server, "steady", feeds(1)).shape == (1, 64, 64, 3)


def test_a_folder_inside_the_repository_keeps_a_server_from_starting(
    environment: None, tmp_path: Path
) -> None:
    """Why versions are made beside the repository."""
    (tmp_path / "repository" / f"{PREFIX}half" / "model" / "1").mkdir(parents=True)
    with (
        pytest.raises(DidNotStartError, match=r"failed to load all models"),
        running(tmp_path / "repository", tmp_path / "log.txt"),
    ):
        pass
