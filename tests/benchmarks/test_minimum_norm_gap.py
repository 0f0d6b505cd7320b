import math

import pytest
import torch
from defences import digits, trained

from hf_robust_ft import ThreatModel
from hf_robust_ft.benchmarks.minimum_norm_gap import bisected, by_fmn, measure_gap
from hf_robust_ft.evaluation.protocols import evaluation_attack


class Threshold(torch.nn.Module):
    """Class 0 of two up to 0.5 in the first pixel value, whose square decides."""

    def forward(self, x):
        above = x[:, 0, 0, 0].square() - 0.25
        return torch.stack([-above, above], 1)


def test_both_references_come_down_to_the_closed_form_distance():
    pytest.importorskip("foolbox")
    pixels = torch.full((3, 1, 2, 2), 0.3)
    pixels[1, 0, 0, 0], pixels[2, 0, 0, 0] = 0.6, 0.1  # wrong as it is; too far
    labels, threat_model = torch.zeros(3, dtype=torch.int64), ThreatModel("Linf", 0.3)
    on_grid = torch.tensor([0.3, 0.0, math.inf], dtype=torch.float64)
    down = bisected(
        lambda x: torch.cat([Threshold()(x), -9 * torch.ones(len(x), 2)], 1), pixels, labels, threat_model, on_grid, 5
    )
    assert down[0] == pytest.approx(0.2, rel=0.01) and down[1:].tolist() == [0.0, math.inf]
    found = by_fmn(Threshold().eval(), pixels[[0, 2]], labels[:2], threat_model, 100)
    assert 0.2 <= found[0] < 0.21 and found[1] == math.inf


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 16 / 255), ("L2", 0.5), ("L1", 2.0)])
def test_half_of_the_eps_are_within_five_percent_of_the_best_known(norm, eps):
    pytest.importorskip("sklearn")
    pytest.importorskip("foolbox")
    _, _, pixels, labels = digits()
    gap = measure_gap(
        trained(0.1, 6),
        pixels[:100],
        labels[:100],
        ThreatModel(norm, eps),
        attack=evaluation_attack(norm=norm),
        thorough_steps=50,
    )
    assert gap.images > 10 and 0 <= gap.median <= 0.05
    assert gap.above_paper <= (norm == "L1") and gap.cost <= 0.4 < gap.paper_cost + 0.4
