import pytest

from hf_robust_ft.models.backbones import BACKBONES
from hf_robust_ft.reporting.licences import HUB_LICENCES, check_licence, licence_metadata


@pytest.mark.parametrize(
    ("licence", "meant"),
    [("Apache 2.0", "'apache-2.0'"), ("MIT", "'mit'"), ("CC BY 4.0", "'cc-by-4.0'"), ("bsd3", "'bsd'"), ("?", "")],
)
def test_what_is_meant_is_offered(licence, meant):
    with pytest.raises(ValueError, match="is no licence id that the Hub lists") as refused:
        check_licence(licence)
    assert ("Did you mean" in str(refused.value)) == bool(meant) and meant in str(refused.value)
    assert "give 'other'" in str(refused.value)


@pytest.mark.parametrize("licence", ["apache-2.0", "openrail++", "other"])
def test_listed_ones_pass(licence):
    check_licence(licence)


@pytest.mark.parametrize("stated", [None, "", "unknown", "non-commercial research", "MIT License"])
def test_what_names_no_licence_is_not_inherited(stated):
    assert licence_metadata({"base_model_license": stated}) == {}


def test_the_given_one_counts():
    assert licence_metadata({"base_model_license": "mit", "license": "gpl-3.0"}) == {"license": "gpl-3.0"}


def test_the_papers_backbones_have_listed_ones():
    assert {backbone.licence for backbone in BACKBONES.values()} <= set(HUB_LICENCES)
