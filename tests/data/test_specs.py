import dataclasses

import pytest

from hf_robust_ft import load_image_dataset
from hf_robust_ft.data import SPECS, expected_sizes
from hf_robust_ft.data.specs import nearest_names


def test_the_papers_sizes():
    """Retyped from the paper, appendix."""
    assert expected_sizes("caltech256") == {"train": 14649, "validation": 771, "test": 15187}
    assert expected_sizes("cub200") == {"train": 5394, "validation": 600, "test": 5794}
    assert expected_sizes("stanford_dogs") == {"train": 10800, "validation": 1200, "test": 8580}
    assert expected_sizes("stanford_cars")["test"] == expected_sizes("fgvc_aircraft")["test"] == 1000
    assert [SPECS[name].num_classes for name in SPECS] == [257, 200, 120, 196, 100]
    assert expected_sizes("digits") is expected_sizes("someone/else") is None


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_spec_is_frozen_and_adds_up(spec):
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.revision = "x"
    with pytest.raises(TypeError):
        spec.sizes["train"] = 1
    assert SPECS[spec.name] is spec and "/" in spec.hub_id and spec.license and spec.citation and spec.verified
    assert spec.revision == "main" or len(spec.revision) == 40
    drawn = sum(spec.source_sizes.values()) - sum(spec.sizes.values())
    assert drawn == (spec.source_sizes["test"] - 1000 if spec.sizes["test"] == 1000 else 0)
    assert all(spec.sizes[name] == size for name, size in spec.paper_sizes.items())


def test_misspelt_names_get_the_nearest():
    assert nearest_names("CUB-200") == ["cub200"]
    assert nearest_names("standford_dogs")[0] == "stanford_dogs"
    assert nearest_names("aircraft") == ["fgvc_aircraft"]
    assert nearest_names("qwerty") == []
    with pytest.raises((ValueError, ConnectionError), match=r"Did you mean cub200\?"):
        load_image_dataset("cub_200")
