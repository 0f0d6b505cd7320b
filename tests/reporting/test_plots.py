import pytest

from hf_robust_ft import APGD, ThreatModel
from hf_robust_ft.reporting import plots
from hf_robust_ft.reports import build_report


@pytest.mark.parametrize(
    ("norm", "eps", "label", "right_end"),
    [
        ("Linf", "8/255", "Linf budget eps (1/255)", 8),
        ("L2", 0.5, "L2 budget eps", 0.5),
        ("L1", 12, "L1 budget eps", 12),
    ],
)
def test_the_axis_is_in_the_unit_of_the_norm(monkeypatch, norm, eps, label, right_end):
    threat_model, drawn = ThreatModel(norm, eps), []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure.axes[0]))
    report = build_report(
        [0, 1, 1], [0.0, threat_model.eps, float("inf")], [1, 0, 1],
        threat_model=threat_model, epsilons=[0, threat_model.eps], attack=APGD(),
    )  # fmt: skip
    plots.plot_curves({"run": report}, "unused.png")
    assert drawn[0].get_xlabel() == label and drawn[0].get_xlim()[1] == pytest.approx(right_end)
    assert drawn[0].lines[0].get_xdata()[-1] == pytest.approx(right_end)
