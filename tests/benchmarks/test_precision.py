"""The benchmark measures in the precision it names, and leaves the process as it was."""

import pytest
import torch

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks import apgd_run as run
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks.precision import AUTOCAST, NO_SCALE, markdown_table, measure, precision


@pytest.mark.parametrize("name", AUTOCAST)
def test_a_precision_holds_for_a_while(name):
    before = torch.backends.fp32_precision, run.FIRST_SCALE, run.GROWTH
    with precision(name, torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == (AUTOCAST[name] is not None)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (AUTOCAST[name] or torch.float32)
        assert torch.backends.fp32_precision == ("tf32" if name == "tf32" else "ieee")
        assert (run.FIRST_SCALE == 1) == (name == NO_SCALE)
    assert (torch.backends.fp32_precision, run.FIRST_SCALE, run.GROWTH) == before


def test_the_figures_are_those_of_the_attack(make_model):
    classifier = PixelClassifier(make_model()).eval()
    pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels, threat_model, attack = classifier(pixels).argmax(1), ThreatModel("Linf", 0.1), APGD(3, random_start=False)
    labels[0] = (labels[0] + 1) % 4
    figures = {name: measure(name, classifier, pixels, labels, threat_model, attack, 4) for name in ("fp32", "bf16")}
    result = attack(classifier, pixels, labels, threat_model)
    assert figures["fp32"]["clean accuracy"] == pytest.approx(5 / 6)
    assert figures["fp32"]["accuracy under attack"] == (~result.fooled).double().mean().item()
    assert figures["fp32"]["the same images in fp32"] == figures["fp32"]["accuracy under attack"]
    assert figures["fp32"]["mean attack loss"] == pytest.approx(result.loss.double().mean().item(), rel=1e-5)
    assert figures["bf16"]["mean attack loss"] != figures["fp32"]["mean attack loss"]
    for row in figures.values():
        assert row["largest distance"] <= 0.1 + 1e-6 and row["images without a gradient"] == 0
    table = markdown_table({"precisions": figures}).splitlines()
    assert table[0].startswith("| precision | clean accuracy |") and table[2].startswith("| fp32 | 83.33 |")
