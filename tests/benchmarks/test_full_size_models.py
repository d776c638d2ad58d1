"""The full-size models: the public ones' parameters, and directories that the export takes."""

import pytest
import torch
from export_full_size import built
from full_size_models import MODELS

from export.model.families import SD3, SD3_WITHOUT_T5, SDXL, family_in

DENOISERS = {  # parameters, millions
    "sdxl": 2567,
    "sd3": 2028,
    "sd3.5-medium": 2243,
    "sd3.5-large": 8057,
}


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_has_as_many_parameters_as_the_public_one(name: str) -> None:
    parts = MODELS[name].parts
    with torch.device("meta"):
        denoiser = built(parts.get("unet") or parts["transformer"])
    assert round(sum(p.numel() for p in denoiser.parameters()) / 1e6) == DENOISERS[name]


@pytest.mark.parametrize("name", MODELS)
def test_the_index_names_a_family_with_all_its_parts(name: str) -> None:
    index = MODELS[name].index
    family = family_in(index)
    assert family is (SDXL if name == "sdxl" else SD3 if "t5" in name else SD3_WITHOUT_T5)
    assert set(family.parts) == {key for key in index if not key.startswith("_")}
