"""What is asked of the peers: the same of all, with right answers that the gateway gives."""

import hashlib
import json
import re

import pytest
from asks import COUNT, PROMPTS, asks, digests, rows, triton_picture
from compare import common_rate, verdicts
from connection import Answer
from measure import Latency, Saturation
from overload import growth
from picture import NULL_PICTURE, REPOSITORY, Shapes
from servers import PEERS, all_servers

from serve.generate import generate_file
from serve.settings import Settings


def body_of(request: bytes) -> dict:
    head, _, body = request.partition(b"\r\n\r\n")
    assert int(re.search(rb"Content-Length: (\d+)", head)[1]) == len(body)
    return json.loads(body)


def test_the_reference_is_the_gateways_picture(tmp_path):
    shapes = Shapes()
    (pixels,) = shapes.draw([shapes.inputs(PROMPTS[0], 4)])
    settings = Settings(repository=REPOSITORY, model="shapes")
    picture = generate_file(settings, PROMPTS[0], 4, tmp_path / "a.png")
    assert shapes.png(pixels, PROMPTS[0], 4) == picture.data


def test_no_request_is_asked_twice_within_a_round():
    assert len({*rows()}) == COUNT == len(digests("null"))
    assert {*digests("null")} == {hashlib.sha256(NULL_PICTURE).digest()}


def test_all_are_asked_the_same_in_their_own_words():
    right = digests("null", 3)
    ours, tritons = asks("null", right)[2], asks("null", right, triton=True)[2]
    assert body_of(ours.request) == {"prompt": PROMPTS[2], "seed": 2, "format": "raw"}
    data = [one["data"] for one in body_of(tritons.request)["inputs"]]
    assert data == [[PROMPTS[2]], [2]]


def test_tritons_picture_lies_behind_its_json():
    answer = Answer()
    answer.headers[b"inference-header-content-length"] = b"2"
    answer.body = b"{}picture"
    assert triton_picture(answer) == b"picture"


def test_every_peer_has_its_configuration_in_a_folder_of_its_own():
    files = [
        part for server in all_servers() for part in server.command if part.startswith(str(PEERS))
    ]
    assert len(files) == 5  # BentoML's is a folder
    assert all(PEERS.joinpath(file).exists() for file in files)
    assert (PEERS / "bento" / "service.py").exists()


def saturation(rate: float) -> Saturation:
    return Saturation(rate, 16, 1.0, 1.0, 100.0, 1.0, 0)


def latency(p99_ms: float) -> Latency:
    return Latency(100.0, 100.0, 1.0, 1.0, p99_ms, p99_ms, p99_ms, 0)


def test_verdicts_hold_ours_against_each_rival():
    saturations = {"singlepass": saturation(300), "LitServe": saturation(100)}
    latencies = {"singlepass": latency(6.0), "LitServe": latency(10.0)}
    rate, p99 = verdicts(saturations, latencies)
    assert (rate.figure, rate.passed) == (3.0, True)
    assert (p99.figure, p99.passed) == (0.6, False)


def test_the_common_rate_is_that_of_the_slowest_rival():
    rates = {"singlepass": 10, "FastAPI": 20, "LitServe": 200, "BentoML": 100}
    assert common_rate({name: saturation(rate) for name, rate in rates.items()}) == 70
    assert common_rate({"singlepass": saturation(10)}) == 7


@pytest.mark.parametrize(("last", "expected"), [(100, 0.0), (150, 0.5)])
def test_growth_compares_the_end_with_the_settled_start(last, expected):
    assert growth([10, *[100] * 5, *[last] * 2]) == pytest.approx(expected, abs=1e-9)
