"""The shipped model under mixed load from several keys: each picture as when asked for alone."""

from pathlib import Path

import pytest
from same_pictures import ROOT, compare, gateway, wishes, write_keys


@pytest.mark.parametrize("pictures", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_pictures_under_mixed_load_are_to_the_bit_those_asked_for_alone(
    tmp_path: Path, pictures: int
) -> None:
    repository, keys = ROOT / "model_repository", write_keys(tmp_path / "keys.toml")
    options = ["--repository", repository, "--model", "shapes", "--threads", 1]
    with gateway(*options, "--keys", keys, "--max-queue", 1024) as url:
        compared = compare(url, wishes(pictures))
    assert compared.wrong == []
    assert compared.right >= pictures
    assert compared.left >= pictures / 100
