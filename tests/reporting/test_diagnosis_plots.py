"""The pictures show the numbers of the diagnosis."""

import numpy as np
import pytest

from hf_robust_ft.provenance.validation_curves import ValidationCurve
from hf_robust_ft.reporting import diagnosis_plots
from hf_robust_ft.reporting.diagnosis import diagnose
from hf_robust_ft.reporting.diagnosis_text import advice, render_diagnosis

DELAYS = (1, 2, 4, None)


def make_curves(final=(0.9, 0.7, 0.5, 0.01), delays=DELAYS, **facts):
    epochs = tuple(range(1, 11))
    return [
        ValidationCurve(
            f"run{k}",
            2 * k / 255,
            epochs,
            tuple(0.01 if delay is None or epoch < delay else accuracy for epoch in epochs),
            10,
            facts,
        )
        for k, (accuracy, delay) in enumerate(zip(final, delays, strict=True))
    ]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved."""
    figures = []
    monkeypatch.setattr(diagnosis_plots, "_save", lambda figure, path: figures.append(figure))
    return figures


def dots(axes):
    """Every dot as (x, y)."""
    return sorted(tuple(point) for scatter in axes.collections for point in scatter.get_offsets().tolist())


def test_curves_are_drawn_with_the_epochs_of_adaptation(drawn):
    curves = make_curves()
    diagnosis_plots.plot_validation_curves(curves, 0.05, "unused.png")
    lines = drawn[0].axes[0].lines
    whole = [line for line in lines if len(line.get_xdata()) == 10]
    assert [list(line.get_ydata()) for line in whole] == [[100 * value for value in c.accuracies] for c in curves]
    assert (
        len({line.get_color() if isinstance(line.get_color(), str) else tuple(line.get_color()) for line in whole}) == 4
    )
    markers = [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines if len(line.get_xdata()) == 1]
    assert markers == [(1, pytest.approx(90)), (2, pytest.approx(70)), (4, pytest.approx(50))]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "standard", "fix, eps 2/255", "fix, eps 4/255", "fix, eps 6/255",
    ]  # fmt: skip


@pytest.mark.parametrize(("norm", "unit"), [("Linf", 255), ("L2", 1)])
def test_delay_and_drop_by_eps(drawn, norm, unit):
    diagnosis_plots.plot_delay_by_eps(diagnose(make_curves(norm=norm)), "unused.png")
    left, right = drawn[0].axes
    x = [unit * 2 * k / 255 for k in range(4)]
    assert np.array(dots(left)) == pytest.approx(np.array([*zip(x, (1, 2, 4, 10), strict=True)]))  # never counts as 10
    assert np.array(dots(right)) == pytest.approx(np.array([*zip(x, (0, 20, 40, 89), strict=True)]))
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["adapted", "never adapted"]
    assert left.get_xlabel() == ("eps_g (1/255)" if norm == "Linf" else "eps_g")


def test_a_line_goes_through_the_means_over_seeds(drawn):
    again = [
        ValidationCurve(f"{c.name}-seed1", c.eps, c.epochs, (c.accuracies[0], *c.accuracies[:-1]), 10)
        for c in make_curves()
    ]
    diagnosis_plots.plot_delay_by_eps(diagnose([*make_curves(), *again]), "unused.png")
    left = drawn[0].axes[0]
    assert list(left.lines[0].get_ydata()) == [1, 2.5, 4.5, 10] and len(dots(left)) == 8


def test_delay_and_final_accuracy_with_their_correlation(drawn):
    diagnosis_plots.plot_delay_and_accuracy(diagnose(make_curves()), "unused.png")
    axes = drawn[0].axes[0]
    x, y = (1, 2, 4, 10), (90, 70, 50, 1)
    assert np.array(dots(axes)) == pytest.approx(np.array([*zip(x, y, strict=True)]))
    assert f"r = {np.corrcoef(x, y)[0, 1]:.2f}" in axes.get_title()
    slope = np.diff(axes.lines[0].get_ydata()) / np.diff(axes.lines[0].get_xdata())
    assert slope == pytest.approx(np.polyfit(x, y, 1)[0])


def test_all_pictures_of_a_diagnosis_without_correlation(tmp_path):
    curves = make_curves(delays=(1, 1, 1, 1))
    paths = diagnosis_plots.plot_diagnosis(diagnose(curves), curves, tmp_path / "pictures")
    assert [path.name for path in paths] == list(diagnosis_plots.NAMES) and all(path.stat().st_size for path in paths)


@pytest.mark.parametrize(
    ("final", "delays", "expected"),
    [
        ((0.9, 0.7, 0.5, 0.01), DELAYS, "Use a schedule: at eps 6/255 fix ends 89.0 points below standard"),
        ((0.9, 0.9, 0.8, 0.7), (1, 2, 4, 8), "20.0 points below standard fine-tuning and adapts 7 epochs later. Take"),
        ((0.9, 0.9, 0.88, 0.89), (1, 2, 4, 4), "No schedule is needed up to eps 6/255: fix loses at most 2.0 points"),
        ((0.8, 0.85, 0.9, 0.9), (1, 2, 4, 4), "fix loses at most 0.0 points"),
        ((0.9, 0.8, 0.7, 0.6), (2, 2, 2, 2), "A schedule may help little: at eps 6/255 fix ends 30.0 points below"),
        (
            (0.9, 0.01, 0.01, 0.01),
            (1, None, None, None),
            "Use a schedule: at eps 2/255 fix ends 89.0 points below standard fine-tuning and never adapts. T1 and T2 "
            "cannot be told from these runs. No fix run",
        ),
        ((0.9, 0.9, 0.9, 0.9), (10, 10, 10, 10), "0.0 points against standard fine-tuning. T1 and T2 cannot be told"),
        ((0.9, 0.8, 0.7, 0.6), (10, 10, 10, 10), "rather the price of robustness than suboptimal transfer. T1 and T2"),
        ((0.9, 0.01, 0.01, 0.01), (10, None, None, None), "Use a schedule: at eps 2/255 fix ends 89.0 points below"),
    ],
)
def test_the_advice_follows_from_the_runs(final, delays, expected):
    diagnosis = diagnose(make_curves(final, delays))
    assert expected in advice(diagnosis)
    assert render_diagnosis(diagnosis).endswith(advice(diagnosis))
