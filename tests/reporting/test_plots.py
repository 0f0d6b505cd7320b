from dataclasses import replace

import pytest

from hf_robust_ft import APGD, ThreatModel
from hf_robust_ft.evaluation.scoring import build_report
from hf_robust_ft.reporting import plots, write_evidence


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


@pytest.fixture
def drawn(monkeypatch):
    """The axes of what is plotted, figure by figure."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure.axes))
    return figures


def make_report(norm="Linf", eps="8/255"):
    threat_model = ThreatModel(norm, eps)
    return build_report(
        [0, 1, 1, 0], [0.0, threat_model.eps / 2, threat_model.eps, float("inf")], [1, 0, 0, 0],
        threat_model=threat_model, epsilons=[0, threat_model.eps / 2, threat_model.eps], attack=APGD(),
    )  # fmt: skip


def test_the_band_is_filled_between_the_reports_intervals(drawn):
    report = make_report()
    plots.plot_curves({"run": report}, "unused.png")
    ((axes,),) = drawn
    (band,) = axes.collections
    corners = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    for eps, ends in zip(report.epsilons, report.confidence_intervals["accuracies"], strict=True):
        assert ends[0] < ends[1] and {(round(255 * eps, 6), round(100 * end, 6)) for end in ends} <= corners
    assert band.get_facecolor()[0, :3] == pytest.approx(plots.plt.matplotlib.colors.to_rgb(axes.lines[0].get_color()))
    assert "95 % interval" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_report_without_intervals_has_no_band_and_no_curve_is_dropped(drawn):
    bare = replace(make_report(), confidence_intervals={})
    plots.plot_curves({f"run {index}": bare for index in range(8)}, "unused.png")
    ((axes,),) = drawn
    assert len(axes.lines) == 8 and not axes.collections


@pytest.mark.parametrize(
    ("norm", "eps", "label", "height"), [("Linf", 8 / 255, "eps (1/255)", 8), ("L2", 0.5, "eps", 0.5)]
)
def test_the_budget_in_training_is_in_the_unit_of_the_norm(drawn, tmp_path, norm, eps, label, height):
    history = [{"loss": 1.0, "eps": eps, "epoch": 1.0}, {"eval_clean_accuracy": 0.5, "epoch": 1.0}]
    write_evidence(make_report(norm, eps), tmp_path, history)
    _, bottom = drawn[1]
    assert bottom.get_ylabel() == label and max(bottom.lines[0].get_ydata()) == pytest.approx(height)


def test_a_run_that_was_not_validated_shows_its_eps_alone(drawn):
    logged = [{"epoch": 1.0, "loss": 2.0, "eps": 0.0}, {"epoch": 2.0, "loss": 1.0, "eps": 4 / 255}]
    plots.plot_training({"run": logged}, "unused.png")
    plots.plot_training({"run": [*logged, {"epoch": 2.0, "eval_clean_accuracy": 0.5}]}, "unused.png")
    alone, both = drawn
    assert [axes.get_ylabel() for axes in alone] == ["eps (1/255)"]
    assert [axes.get_ylabel() for axes in both] == ["validation accuracy (%)", "eps (1/255)"]
    assert alone[0].get_title() == both[0].get_title() == "Training"


@pytest.mark.parametrize("norm, eps, whole", [("Linf", "4/255", True), ("L2", 0.5, False)])
def test_budgets_under_linf_are_marked_at_whole_255ths(drawn, norm, eps, whole):
    plots.plot_curves({"run": make_report(norm, eps)}, "unused.png")
    assert all(float(tick).is_integer() for tick in drawn[0][0].get_xticks()) == whole
