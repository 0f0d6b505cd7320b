"""The pictures show the numbers of the results."""

import numpy as np
import pytest
from grid_results import EPOCHS, make_result

from hf_robust_ft.experiments.grid import panels, plots
from hf_robust_ft.experiments.grid.frontier import plot_frontier
from hf_robust_ft.experiments.grid.plot_styles import styles_of
from hf_robust_ft.experiments.grid.plots import plot_grid


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved."""
    figures = []
    for module in (plots, panels):
        monkeypatch.setattr(module, "_save", lambda figure, path: figures.append(figure))
    yield figures
    for figure in figures:
        plots.plt.close(figure)


def grid(**facts):
    return [
        make_result(setting=setting, seed=seed, clean=clean + seed / 50, **facts)
        for setting, clean in (("standard", 0.9), ("fix", 0.5), ("hinge", 0.8))
        for seed in (0, 1, 2)
    ]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


@pytest.mark.parametrize(("norm", "eps", "end"), [("Linf", "4/255", 4), ("L2", "0.5", 0.5)])
def test_accuracy_by_eps_is_the_mean_over_seeds_in_their_range(drawn, norm, eps, end):
    results = grid(norm=norm, eps=eps)
    plots.plot_accuracy_by_eps(results, "unused.png", styles=styles_of(results))
    (axes,) = visible(drawn[0])
    fix = next(line for line in axes.lines if line.get_label() == "fix")
    assert fix.get_xdata()[-1] == pytest.approx(end)
    assert (fix.get_ydata()[0], fix.get_ydata()[-1]) == pytest.approx((52, 40))
    bands = [band.get_paths()[0].get_extents() for band in axes.collections]
    assert (bands[1].y0, bands[1].y1) == pytest.approx((40, 54))
    assert legend(drawn[0]) == ["standard", "fix", "hinge"]


def test_scores_as_bars_with_the_papers(drawn):
    results = grid(model="swin", dataset="stanford_cars")
    plots.plot_scores(results, "unused.png", styles=styles_of(results))
    (axes,) = visible(drawn[0])
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers if hasattr(bars, "patches")]
    assert heights[1] == pytest.approx([52, 40, 46])
    lines = [row for each in axes.collections for row in each.get_segments() if row[0][1] == row[1][1]]
    assert {round(float(row[0][1]), 2) for row in lines} >= {60.2, 29.7, 44.74, 84.7, 43.2, 66.41}
    assert legend(drawn[0]) == ["standard", "fix", "hinge", "the paper's"]
    other = grid(model="swin", dataset="stanford_cars", protocol="exact")
    plots.plot_scores(other, "unused.png", styles=styles_of(other))
    assert "the paper's" not in legend(drawn[1])


def test_validation_accuracy_over_eps_by_epoch(drawn):
    results = grid()
    plots.plot_training_by_setting(results, "unused.png", styles=styles_of(results))
    top, bottom = visible(drawn[0])
    hinge = next(line for line in top.lines if line.get_label() == "hinge")
    assert list(hinge.get_xdata()) == list(range(1, EPOCHS + 1)) and hinge.get_ydata()[-1] == pytest.approx(82)
    budget = bottom.lines[2]
    assert list(budget.get_xdata()) == list(range(EPOCHS + 1)) and budget.get_ydata()[-1] == pytest.approx(4)
    assert set(bottom.lines[0].get_ydata()) == {0} and bottom.get_ylim()[0] < 0
    assert budget.get_color() == hinge.get_color()


def test_robustness_over_its_cost_with_the_best_joined(drawn):
    costs = {"standard": 0, "fix": 7000, "hinge": 5000, "uniform": 6000}
    clean = {"standard": 0.2, "fix": 0.9, "hinge": 0.8, "uniform": 0.6}
    results = [
        make_result(setting=setting, seed=seed, clean=clean[setting] + seed / 50, adversarial=0, attack_passes=passes)
        for setting, passes in costs.items()
        for seed in ((0, 1) if setting != "fix" else (0,))
    ]
    plot_frontier(results, "unused.png", styles=styles_of(results))
    (axes,) = visible(drawn[0])
    front = next(line for line in axes.lines if line.get_label() == "best for the cost")
    assert front.get_xdata() == pytest.approx([4, 14, 18])  # thousand forwards: 3 x 1000 + 2 x attack + 1000
    assert front.get_ydata() == pytest.approx([10.5, 40.5, 45])
    bars = {bar.get_label(): bar.get_children() for bar in axes.containers}
    assert len(bars["fix"]) == 1 < len(bars["hinge"])  # of one seed no bar
    assert legend(drawn[0])[-1] == "best for the cost"


def test_the_ablation_is_laid_out_by_t1_and_t2(drawn):
    values = {(0, 12): 0.5, (12, 12): 0.1, (12, 37): 0.9}
    results = [make_result(setting=f"hinge:{start},{end}", clean=clean) for (start, end), clean in values.items()]
    plots.plot_start_and_end(results, "unused.png")
    axes = drawn[0].axes[0]
    shown = axes.images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(shown, [[50, np.nan], [10, 90]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["12", "37"]
    assert sorted(text.get_text() for text in axes.texts) == ["10.0", "50.0", "90.0"]


@pytest.mark.parametrize(("classes", "threshold"), [(10, "50%"), (100, "5%")])
def test_delay_against_accuracy(drawn, classes, threshold):
    results = [make_result(setting="hinge", adapts=2, num_classes=classes), make_result(adapts=99, num_classes=classes)]
    plots.plot_delay_and_accuracy(results, "unused.png", styles=styles_of(results))
    (axes,) = visible(drawn[0])
    points = {line.get_marker(): line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata())}
    delay = 2 if classes == 100 else 7  # 0.8 * 7 / 10 is the first above a half
    assert points == {"o": [[delay, pytest.approx(80)]], "x": [[EPOCHS, pytest.approx(80)]]}
    assert threshold in axes.get_xlabel() and legend(drawn[0]) == ["fix", "hinge", "never adapted"]


def test_panels_by_backbone_and_dataset_and_none_where_nothing_ran(drawn):
    results = [make_result("vit"), make_result("vit", "flowers"), make_result("swin")]
    plots.plot_accuracy_by_eps(results, "unused.png", styles=styles_of(results))
    assert [axes.get_title() for axes in visible(drawn[0])] == ["vit, digits", "vit, flowers", "swin, digits"]
    # vit, flowers has no panel below it that would bear the numbers of the axis
    assert [bool(axes.get_xlabel()) for axes in visible(drawn[0])] == [False, True, True]


def test_a_setting_looks_the_same_in_all_pictures_and_none_like_another(drawn):
    names = ["standard", "fix", "hinge", *"abcdefghij"]
    results = [make_result(setting=name) for name in names] + [make_result(setting="j", eps="8/255")]
    styles = styles_of(results)
    assert len({(style["color"], style["linestyle"]) for style in styles.values()}) == len(names)
    plot_grid(results, "unused")
    for figure in drawn:
        for axes in visible(figure):
            for line in axes.lines:
                if line.get_label() == "j":
                    assert line.get_color() == styles["j"]["color"]


def test_pictures_of_every_eps_are_written(tmp_path, rendered_pictures):
    results = [*grid(), *grid(eps="8/255"), make_result(setting="hinge:12,37")]
    paths = plot_grid(results, tmp_path)
    kinds = ["accuracy_by_eps", "scores", "training", "delay_and_accuracy"]
    names = [f"{kind}_{eps}_255.png" for kind in kinds for eps in (4, 8)]
    expected = [*names, "start_and_end_4_255.png", "frontier_4_255.png", "frontier_8_255.png"]
    assert [path.name for path in paths] == expected and all(path.stat().st_size for path in paths)


def test_runs_without_validation_have_no_picture_of_it(drawn):
    result = make_result()
    result.validation.clear()
    assert [path.name for path in plot_grid([result], "unused")] == ["accuracy_by_eps_4_255.png", "scores_4_255.png"]


def test_a_picture_that_fails_is_left_out_and_told(monkeypatch, tmp_path, caplog):
    def fail(*_, **__):
        raise ValueError("no font\nat all")

    monkeypatch.setattr(plots, "plot_scores", fail)
    names = {path.name for path in plot_grid(grid(), tmp_path)}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert "accuracy_by_eps_4_255.png" in names and "scores_4_255.png" not in names
    assert "scores_4_255.png could not be drawn and is left out (ValueError: no font)." in caplog.text
