"""Triton configs: what each runtime's says, read back by Triton's protobuf, and what is refused."""

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from export.errors import ExportError, RepositoryError
from export.repository.batching import GAIN, Batching, derive_batching
from export.repository.triton_config import (
    ServingOptions,
    keep_pin,
    parse,
    set_engines,
    triton_config,
)
from export.signature import text_to_image

ONE_SIZE = text_to_image(4, 128, 1024)
TWO_SIZES = text_to_image(4, 128, 1024, sizes=[(1024, 1024), (1216, 832)])
ENGINES = {"9.0": "model.sm90.plan", "8.9": "model.sm89.plan", "10.0": "model.sm100.plan"}
TIMES = {1: 20.0, 2: 30.0, 3: 46.0, 4: 52.0, 8: 104.0}


def config_of(signature=ONE_SIZE, max_batch=8, runtime="onnxruntime", **given):
    text = triton_config("sdxl", signature, max_batch, runtime, **given)
    return text_format.Parse(text, pb.ModelConfig())


def test_the_queue_is_bounded_and_the_response_cache_off() -> None:
    config = config_of(options=ServingOptions(max_queue=9, timeout_ms=1500))
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (9, 1_500_000)
    assert policy.timeout_action == policy.REJECT
    assert policy.allow_timeout_override
    assert config.HasField("response_cache")
    assert not config.response_cache.enable


def test_without_times_triton_batches_what_waits_and_with_them_what_pays() -> None:
    plain, tuned = config_of().dynamic_batching, config_of(service_ms=TIMES).dynamic_batching
    assert (list(plain.preferred_batch_size), plain.max_queue_delay_microseconds) == ([], 0)
    assert list(tuned.preferred_batch_size) == [2, 4]
    assert tuned.max_queue_delay_microseconds == 7000


def test_each_runtime_names_its_back_end_file_and_device() -> None:
    found = {}
    for runtime in ("onnxruntime", "python", "tensorrt"):
        config = config_of(runtime=runtime, engines=ENGINES, options=ServingOptions(instances=2))
        (group,) = config.instance_group
        found[runtime] = (config.backend, config.default_model_filename, group.kind, group.count)
    kinds = pb.ModelInstanceGroup
    assert found == {
        "onnxruntime": ("onnxruntime", "model.onnx", kinds.KIND_CPU, 2),
        "python": ("python", "model.py", kinds.KIND_CPU, 2),
        "tensorrt": ("tensorrt", "model.sm89.plan", kinds.KIND_GPU, 2),
    }
    assert config_of(options=ServingOptions(gpu=True)).instance_group[0].kind == kinds.KIND_GPU


def test_the_python_runtime_is_told_its_graph_and_threads() -> None:
    config = config_of(runtime="python", options=ServingOptions(threads=3))
    values = {key: value.string_value for key, value in config.parameters.items()}
    assert values == {"graph": "model.onnx", "intra_op_thread_count": "3"}


def test_engines_go_by_compute_capability_and_the_lowest_serves_the_rest() -> None:
    config = config_of(runtime="tensorrt", engines=ENGINES)
    assert dict(config.cc_model_filenames) == ENGINES
    set_engines(config, {"10.0": "b.plan", "9.0": "a.plan"})
    assert dict(config.cc_model_filenames) == {"10.0": "b.plan", "9.0": "a.plan"}
    assert config.default_model_filename == "a.plan"


def test_a_cuda_graph_and_a_profile_per_size_and_batch() -> None:
    config = config_of(TWO_SIZES, 2, "tensorrt", engines=ENGINES)
    assert config.optimization.cuda.graphs
    specs = [
        (spec.batch_size, tuple(spec.input["noise"].dim), tuple(spec.input["input_ids"].dim))
        for spec in config.optimization.cuda.graph_spec
    ]
    square, wide = (4, 128, 128), (4, 104, 152)
    assert specs == [(batch, noise, (77,)) for noise in (square, wide) for batch in (1, 2)]
    assert list(config.instance_group[0].profile) == ["0", "1"]
    without = ServingOptions(cuda_graphs=False)
    config = config_of(ONE_SIZE, 2, "tensorrt", engines=ENGINES, options=without)
    assert not config.HasField("optimization")
    assert not config.instance_group[0].profile


def test_open_sides_are_minus_one_and_all_sizes_are_warmed_up() -> None:
    config = config_of(TWO_SIZES, 4)
    assert list(config.input[2].dims) == [4, -1, -1]
    assert list(config.output[0].dims) == [-1, -1, 3]
    warmed = [(s.name, s.batch_size, list(s.inputs["noise"].dims)) for s in config.model_warmup]
    square = [(f"1024x1024, batch {b}", b, [4, 128, 128]) for b in (1, 2, 3, 4)]
    assert warmed == square + [(f"1216x832, batch {b}", b, [4, 104, 152]) for b in (1, 4)]
    sample = config.model_warmup[0].inputs
    assert sample["input_ids"].zero_data
    assert sample["noise"].random_data
    assert not config_of(options=ServingOptions(warm_up=False)).model_warmup


def test_versions_are_the_newest_few_or_exact_ones_and_a_pin_outlives_a_new_config() -> None:
    assert config_of(options=ServingOptions(versions=3)).version_policy.latest.num_versions == 3
    pinned = config_of(options=ServingOptions(versions=(4, 2)))
    assert list(pinned.version_policy.specific.versions) == [2, 4]
    assert keep_pin(pinned, config_of()).version_policy == pinned.version_policy
    assert keep_pin(config_of(), pinned).version_policy == pinned.version_policy


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"runtime": "openvino"}, "the runtime is 'openvino'; allowed are onnxruntime, tensorrt"),
        ({"runtime": "tensorrt"}, "there is no engine; build one first"),
        ({"engines": {"sm90": "a.plan"}, "runtime": "tensorrt"}, "is 'sm90'; it must be like '9.0"),
        ({"options": ServingOptions(instances=0)}, "instances is 0; it must be at least 1"),
        ({"options": ServingOptions(max_queue=-1)}, "max_queue is -1; it must be at least 0"),
        ({"options": ServingOptions(timeout_ms=-1)}, "timeout_ms is -1"),
        ({"options": ServingOptions(threads=-1)}, "threads is -1"),
        ({"options": ServingOptions(versions=0)}, "versions is 0; it must be at least 1"),
        ({"options": ServingOptions(versions=())}, "versions is 0; it must be at least 1"),
        ({"service_ms": {2: 1.0}}, r"service_ms has the batch sizes \[2\]; 1 must be in it"),
        ({"service_ms": {1: 1.0, 9: 2.0}}, "a batch of 9; it must lie between 1 and max_batch 8"),
        ({"service_ms": {1: float("nan")}}, "service_ms of batch 1 is nan; it must be above 0"),
    ],
)
def test_an_option_that_cannot_be_is_named(given: dict, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        config_of(**given)


def test_tensorrt_is_not_put_on_a_cpu() -> None:
    with pytest.raises(ExportError, match="gpu is False; the runtime 'tensorrt' needs a GPU"):
        config_of(runtime="tensorrt", engines=ENGINES, options=ServingOptions(gpu=False))


def test_what_triton_could_not_read_is_refused() -> None:
    with pytest.raises(RepositoryError, match=r"config\.pbtxt is not a Triton config"):
        parse("input { nonsense: 1 }")


@given(st.dictionaries(st.integers(2, 8), st.floats(0.5, 900), max_size=7), st.floats(0.5, 100))
def test_every_preferred_size_is_cheaper_and_waiting_costs_less_than_a_call(times, alone) -> None:
    service_ms = {1: alone, **times}
    batching = derive_batching(service_ms, 8)
    assert 0 <= batching.delay_us < alone * 1000
    for size in set(batching.preferred) - {1}:
        smaller = [service_ms[s] / s for s in service_ms if s < size]
        assert service_ms[size] / size <= GAIN * min(smaller)
    if batching.preferred == (1,):
        assert batching == Batching((1,), 0)
