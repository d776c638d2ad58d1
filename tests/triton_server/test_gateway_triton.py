"""The gateway in front of a real Triton: the same pictures, whatever happens to the server."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from running_triton import free_port, running
from shipped_model import publish_into
from triton_gateway import Load, body, drawn_in_process, gateway, ready_s

pytestmark = pytest.mark.triton

SEEDS = range(12)
WAITS = {1: 900.0, 8: 904.0}  # a picture alone waits in Triton's queue for company


def test_pictures_are_those_of_the_in_process_back_end_to_the_bit(server, publish_shapes) -> None:
    publish_shapes("equal", service_ms={1: 20.0, 4: 40.0})
    server.load("equal")
    right = drawn_in_process(server.repository, "equal", SEEDS)
    assert len({*right.values()}) == len(SEEDS)
    with gateway(server.repository, "equal", server.url) as client, ThreadPoolExecutor(12) as pool:
        assert ready_s(client) < 5
        answers = [pool.submit(client.post, "/generate", json=body(seed)) for seed in SEEDS]
        assert {seed: answers[seed].result().content for seed in SEEDS} == right
    (stats,) = server.client.get_inference_statistics("equal").model_stats
    assert stats.inference_count == len(SEEDS)
    assert stats.execution_count < len(SEEDS)


def test_a_deadline_that_passes_in_tritons_queue_is_answered_at_it(server, publish_shapes) -> None:
    publish_shapes("late", service_ms=WAITS)
    server.load("late")
    with gateway(server.repository, "late", server.url) as client:
        ready_s(client)
        start = time.monotonic()
        answer = client.post("/generate", json=body(1), headers={"X-Deadline-Ms": "150"})
        assert time.monotonic() - start < 0.6
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["type"].endswith("deadline-cannot-be-met")


def test_clients_that_go_away_take_their_pictures_out_of_tritons_queue(
    server, publish_shapes
) -> None:
    publish_shapes("left", service_ms={1: 20.0, 2: 40.0})
    server.load("left")

    def leave(seed: int) -> None:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/generate", json=body(seed) | {"num_images": 8}, timeout=0.2)

    with gateway(server.repository, "left", server.url) as client, ThreadPoolExecutor(4) as pool:
        ready_s(client)
        list(pool.map(leave, range(0, 320, 80)))
        right = drawn_in_process(server.repository, "left", range(1))
        assert client.post("/generate", json=body(0)).content == right[0]
    (stats,) = server.client.get_inference_statistics("left").model_stats
    asked = stats.inference_count + stats.inference_stats.fail.count
    assert asked == 33
    assert stats.inference_count < 17


def test_a_full_queue_of_triton_is_429(server, publish_shapes) -> None:
    from export.repository.triton_config import ServingOptions

    options = ServingOptions(threads=1, warm_up=False, max_queue=2)
    publish_shapes("full", options=options, service_ms=WAITS)
    server.load("full")
    with gateway(server.repository, "full", server.url) as client, ThreadPoolExecutor(8) as pool:
        ready_s(client)
        asked = [pool.submit(client.post, "/generate", json=body(seed)) for seed in range(8)]
        answers = [one.result() for one in asked]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert {answer.json()["type"][-10:] for answer in refused} == {"queue-full"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


def test_a_frozen_triton_is_noticed_and_what_it_holds_is_answered(server, publish_shapes) -> None:
    publish_shapes("frozen")
    server.load("frozen")
    with gateway(server.repository, "frozen", server.url) as client, ThreadPoolExecutor(1) as pool:
        ready_s(client)
        right = client.post("/generate", json=body(1)).content
        with server.frozen():
            start = time.monotonic()
            held = pool.submit(client.post, "/generate", json=body(2))
            while client.get("/readyz").status_code == 200:
                assert time.monotonic() - start < 5
                time.sleep(0.05)
            assert client.post("/generate", json=body(1)).status_code == 503
            answer = held.result()
            assert time.monotonic() - start < 12
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert ready_s(client) < 5
        assert client.post("/generate", json=body(1)).content == right


def test_killing_triton_under_load_gives_right_pictures_or_clean_503s_and_it_recovers(
    environment: None, tmp_path
) -> None:
    repository, port = tmp_path / "repository", free_port()
    publish_into(repository, "shapes")
    right = drawn_in_process(repository, "shapes", range(8))
    with gateway(repository, "shapes", f"127.0.0.1:{port}") as client:
        before = client.get("/readyz")
        assert (before.status_code, before.headers["retry-after"]) == (503, "1")
        assert f"Triton at 127.0.0.1:{port} does not serve shapes/1" in before.json()["detail"]
        with running(repository, tmp_path / "log.txt", port=port) as server:
            assert ready_s(client) < 5
            with Load(client) as load:
                load.wait_for(200)
                time.sleep(0.5)
                server.kill()
                load.wait_for(503)
                time.sleep(0.5)
        assert client.get("/readyz").status_code == 503
        with running(repository, tmp_path / "log2.txt", port=port):
            assert ready_s(client) < 5
            assert client.post("/generate", json=body(3)).content == right[3]
    assert {answer.status_code for _, answer, _ in load.answers} == {200, 503}
    for seed, answer, taken_s in load.answers:
        assert taken_s < 5
        if answer.status_code == 200:
            assert answer.content == right[seed]
        else:
            assert int(answer.headers["retry-after"]) >= 1
