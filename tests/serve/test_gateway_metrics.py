"""What Prometheus scrapes, read by its own parser."""

import asyncio
import shutil
import subprocess
from itertools import pairwise
from types import SimpleNamespace

import pytest
from fake_backend import FakeBackend, client_of
from prometheus_client.parser import text_string_to_metric_families

from serve.app import create_app
from serve.metrics import OTHER, SECONDS, SIZES, Metrics, unobserved

RED = {"prompt": "a red circle", "seed": 5}
ANSWER = SimpleNamespace(
    pictures=("one", "two"), queue_s=0.0004, tokenize_s=0.0015, infer_s=0.04, encode_s=2.5
)


def families(text: bytes) -> dict:
    return {one.name: one for one in text_string_to_metric_families(text.decode())}


def samples(metrics: Metrics) -> dict[tuple, float]:
    """(name, label values in the order of the labels' names) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families(metrics.text()[0]).values()
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    """The figures of one application, with one of each thing counted."""
    made = Metrics("1.2.3")
    tiny = made.model("tiny")
    tiny.serves(1, "abc")
    tiny.watch(lambda: 3, lambda: 0.25, lambda: True)
    tiny.made(ANSWER)
    tiny.batch(3, 0.04)
    tiny.cancelled("queued")
    made.answered("/generate", "POST", 200, 0.06)
    made.refused("queue-full")
    made.reused("etag")
    made.reloaded("tiny", "loaded")
    return made


def test_every_event_is_counted_under_its_name_and_labels(metrics):
    found = samples(metrics)
    assert found["singlepass_http_requests_total", "POST", "/generate", "200"] == 1
    assert found["singlepass_http_request_duration_seconds_sum", "/generate"] == 0.06
    assert found["singlepass_refused_total", "queue-full"] == 1
    assert found["singlepass_pictures_total", "tiny"] == 2
    assert found["singlepass_batch_size_sum", "tiny"] == 3
    assert found["singlepass_batch_duration_seconds_sum", "tiny"] == 0.04
    assert found["singlepass_cancelled_total", "tiny", "queued"] == 1
    assert found["singlepass_cancelled_total", "tiny", "running"] == 0
    assert found["singlepass_reused_total", "etag"] == 1
    assert found["singlepass_reused_total", "in_flight"] == 0
    assert found["singlepass_model_reloads_total", "tiny", "loaded"] == 1
    assert found["singlepass_model_info", "abc", "tiny", "1"] == 1
    assert found["singlepass_build_info", "1.2.3"] == 1


def test_each_stage_falls_into_the_bucket_of_its_length(metrics):
    found = samples(metrics)

    def below(stage: str, seconds: float) -> float:
        return found["singlepass_stage_duration_seconds_bucket", str(seconds), "tiny", stage]

    for stage, bound, smaller in (("tokenize", 0.002, 0.001), ("infer", 0.05, 0.02)):
        assert (below(stage, bound), below(stage, smaller)) == (1, 0)
    assert (below("queue", 0.001), below("encode", 2.0), below("encode", 5.0)) == (1, 0, 1)


def test_buckets_reach_from_a_millisecond_to_a_minute_and_over_every_batch():
    assert (SECONDS[0], SECONDS[-1], SIZES[0], SIZES[-1]) == (0.001, 60.0, 1, 64)
    assert all(1.3 <= after / before <= 3 for before, after in pairwise(SECONDS))


def test_gauges_are_read_at_each_scrape_and_no_wait_is_told_unless_ready(metrics):
    depth, ready = [7], [True]
    metrics.model("tiny").watch(lambda: depth[0], lambda: 1.5, lambda: ready[0])
    found = samples(metrics)
    assert found["singlepass_queue_depth", "tiny"] == 7
    assert found["singlepass_queue_wait_seconds", "tiny"] == 1.5
    assert found["singlepass_model_ready", "tiny"] == 1
    depth[0], ready[0] = 0, False
    found = samples(metrics)
    assert (found["singlepass_queue_depth", "tiny"], found["singlepass_model_ready", "tiny"]) == (
        0,
        0,
    )
    assert ("singlepass_queue_wait_seconds", "tiny") not in found


def test_a_version_that_is_swapped_in_goes_on_counting(metrics):
    metrics.model("tiny").serves(2, "def")
    metrics.model("tiny").made(ANSWER)
    found = samples(metrics)
    assert ("singlepass_model_info", "abc", "tiny", "1") not in found
    assert found["singlepass_model_info", "def", "tiny", "2"] == 1
    assert found["singlepass_pictures_total", "tiny"] == 4


def test_a_model_that_is_forgotten_leaves_no_series(metrics):
    gone = metrics.model("tiny")
    gone.forget()
    gone.made(ANSWER)  # the end of what was still in work
    assert not [key for key in samples(metrics) if "tiny" in key]
    metrics.model("tiny").made(ANSWER)
    assert samples(metrics)["singlepass_pictures_total", "tiny"] == 2


def test_a_method_that_nobody_defined_makes_no_series_of_its_own(metrics):
    for method in ("BREW", "X" * 50):
        metrics.answered(OTHER, method, 405, 0.001)
    assert samples(metrics)["singlepass_http_requests_total", OTHER, OTHER, "405"] == 2


def test_figures_of_two_applications_are_apart(metrics):
    assert samples(Metrics("1"))[("singlepass_reused_total", "etag")] == 0
    unobserved().made(ANSWER)
    assert samples(metrics)["singlepass_pictures_total", "tiny"] == 2


def test_the_process_and_its_garbage_are_measured(metrics):
    found = samples(metrics)
    assert found["process_resident_memory_bytes",] > 2**20
    assert found["process_open_fds",] > 2
    assert ("python_gc_collections_total", "0") in found


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Prometheus")
def test_promtool_finds_nothing_to_say(metrics):
    said = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.text()[0], capture_output=True, check=False
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, b"", b"")


def scraped(settings, *requests) -> dict[tuple, float]:
    """Samples of a gateway after (method, path, options)."""

    async def run():
        async with client_of(create_app(settings, FakeBackend())) as client:
            for method, path, options in requests:
                await client.request(method, path, **options)
            return await client.get("/metrics")

    answer = asyncio.run(run())
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families(answer.content).values()
        for sample in family.samples
    }


def test_a_gateway_counts_answers_by_route_never_by_path(settings):
    paths = ["/v1/models/tiny", "/v1/models/no", "/nowhere/a", "/nowhere/b", "/livez"]
    found = scraped(settings, *(("GET", path, {}) for path in paths), ("GET", "/generate", {}))
    counted = {key[1:]: value for key, value in found.items() if key[0].endswith("requests_total")}
    assert counted == {
        ("GET", "/v1/models/{id}", "200"): 1,
        ("GET", "/v1/models/{id}", "404"): 1,
        ("GET", OTHER, "404"): 2,
        ("GET", "/livez", "200"): 1,
        ("GET", "/generate", "405"): 1,
    }


def test_a_gateway_counts_each_refusal_once_with_its_reason(settings):
    bad = [
        ("POST", "/generate", {"json": {}}),
        ("POST", "/generate", {"content": b"["}),
        ("POST", "/v1/images/generations", {"json": RED | {"n": 99}}),
        ("GET", "/livez", {"headers": {"X-Request-ID": "a b"}}),
        ("GET", "/nowhere", {}),
    ]
    found = scraped(settings, *bad)
    refused = {key[1]: value for key, value in found.items() if "refused" in key[0]}
    assert refused == {"invalid-parameters": 3, "unsupported-media-type": 1, "not-found": 1}


def test_a_gateway_tells_which_model_it_serves(settings, model):
    found = scraped(settings, ("POST", "/generate", {"json": RED}))
    assert found["singlepass_model_info", model.manifest.digest, "tiny", "1"] == 1
    assert found["singlepass_model_ready", "tiny"] == 1
    assert found["singlepass_queue_depth", "tiny"] == 0
    secrets = {"5", "a red circle"}
    assert not [key for key in found if secrets & {*key[1:]}]


def test_the_queue_is_as_deep_as_places_are_taken_whatever_holds_them(settings):
    """Also in a call of the model or in an encoder: it is held against max_queue."""

    async def run():
        app = create_app(settings, FakeBackend())
        async with client_of(app) as client:
            with app.state.gateway.repository.get().admission.admit(3, deadline_s=9.0):
                return (await client.get("/metrics")).text

    assert 'singlepass_queue_depth{model="tiny"} 3.0' in asyncio.run(run())
