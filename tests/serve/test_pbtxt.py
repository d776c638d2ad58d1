"""Our reading of protobuf's text format against protobuf's own, on Triton configs."""

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from serve.pbtxt import PbtxtError, parse

TEXTS = st.text(max_size=12)
POLICIES = st.builds(
    pb.ModelVersionPolicy,
    specific=st.builds(
        pb.ModelVersionPolicy.Specific,
        versions=st.lists(st.integers(1, 2**62), max_size=4),
    ),
)
CONFIGS = st.builds(
    pb.ModelConfig,
    name=TEXTS,
    version_policy=POLICIES,
    default_model_filename=TEXTS,
    max_batch_size=st.integers(0, 64),
    input=st.lists(st.builds(pb.ModelInput, name=TEXTS, dims=st.lists(st.integers(-1, 99)))),
    cc_model_filenames=st.dictionaries(TEXTS, TEXTS, max_size=2),
)


@examples(max_examples=150, deadline=None)
@given(config=CONFIGS, one_line=st.booleans(), angles=st.booleans(), short=st.booleans())
def test_versions_and_inputs_are_read_as_protobuf_wrote_them(config, one_line, angles, short):
    text = text_format.MessageToString(
        config, as_one_line=one_line, pointy_brackets=angles, use_short_repeated_primitives=short
    )
    read = parse("# a comment\n" + text)
    (policy,) = read["version_policy"]
    numbers = [int(v) for part in policy["specific"] for v in part.get("versions", [])]
    assert numbers == list(config.version_policy.specific.versions)
    dims = [[int(d) for d in tensor.get("dims", [])] for tensor in read.get("input", [])]
    assert dims == [list(tensor.dims) for tensor in config.input]


def test_hand_written_forms_are_read():
    text = """
    name: 'it\\'s' "two"  # strings side by side
    version_policy: { specific: < versions: [1, 2,
      3] >; }, instance_group [ { count: 1 }, { count: 2 } ]
    """
    assert parse(text) == {
        "name": ["'it\\'s' \"two\""],
        "version_policy": [{"specific": [{"versions": ["1", "2", "3"]}]}],
        "instance_group": [{"count": ["1"]}, {"count": ["2"]}],
    }
    assert parse("") == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a {", "ends inside a field"),
        ("a: [1, 2", "ends inside a field"),
        ("a:", "ends inside a field"),
        ("}", "'}' stands where a field's name should be"),
        ("a: }", "'}' stands where a value should be"),
        ('a: 1\nb: "open', "line 2 has '\"'"),
    ],
)
def test_what_is_no_text_format_is_refused_with_its_place(text: str, sentence: str):
    with pytest.raises(PbtxtError, match=sentence):
        parse(text)
