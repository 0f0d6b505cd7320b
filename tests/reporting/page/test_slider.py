import numpy as np
import pytest
from page_runs import make_report

from hf_robust_ft.attacks.threat_model import parse_eps
from hf_robust_ft.reporting.page.slider import robustness_up_to, slider_epsilons, slider_ticks, what_keeps_apart


@pytest.mark.parametrize("protocol", ["paper", "exact"])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", "8/255"), ("Linf", 0.0201), ("L2", 1.5)])
@pytest.mark.parametrize(("seed", "images"), [(5, 1), (6, 17), (7, 400)])
def test_expected_robustness_is_the_mean_accuracy_up_to_eps(seed, images, norm, eps, protocol):
    report = make_report(seed, eps=eps, norm=norm, protocol=protocol, images=images)
    end = report.epsilons[-1]
    for chosen in (end / 1000, 0.37 * end, report.epsilons[3], end):
        # Between jumps and kinks accuracy is a line, so that the mean of its values at middles is exact.
        jumps = [point for point in (*report.epsilons, *filter(None, report.smallest_epsilons)) if point < chosen]
        pieces = np.unique([0, *jumps, chosen])
        middles = (pieces[1:] + pieces[:-1]) / 2
        wanted = np.average(report.accuracies_at(middles), weights=np.diff(pieces))
        assert robustness_up_to(report, chosen) == pytest.approx(wanted, abs=1e-9)
    assert robustness_up_to(report, end) == pytest.approx(report.expected_robustness, abs=1e-9)
    assert robustness_up_to(report, 0) == report.clean_accuracy
    assert robustness_up_to(report, 1.01 * end) is None


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "8/255"), ("Linf", "3/255"), ("Linf", 0.0201), ("L2", 0.5)])
def test_ticks_meet_the_points_of_every_grid(norm, eps):
    reports = [make_report(norm=norm, eps=part * parse_eps(eps)) for part in (1, 0.5)]
    ticks = slider_epsilons(reports)
    assert ticks[0] == 0 and ticks[-1] == reports[0].epsilons[-1] and len(ticks) > 100
    assert np.allclose(np.diff(ticks), ticks[1], atol=1e-9)
    if eps != 0.0201:  # which its grid of 1/255 does not divide
        assert set(reports[0].epsilons) <= set(ticks)


def test_each_tick_has_a_label_of_its_own():
    labels = [tick["label"] for tick in slider_ticks([make_report()], 1 / 255)]
    assert len(set(labels)) == len(labels) == 161
    assert labels[0] == "0" and labels[1] == "0.05/255" and labels[80] == "4/255" and labels[-1] == "8/255"


def test_differences_are_told_only_where_settings_and_points_agree():
    first = make_report(0)
    assert what_keeps_apart(first, make_report(1), 1.0) is None
    assert what_keeps_apart(first, first.with_metadata(source_digest="f00"), 1.0) == (
        "image_set (not stated, f00)",
        0.0,
    )
    assert what_keeps_apart(first, make_report(eps="4/255"), 1 / 255) == ("grid of eps", pytest.approx(5))
    narrow, wide = (make_report(norm="L2", eps=eps) for eps in (0.5, 1.0))
    assert what_keeps_apart(narrow, wide, 1.0) == ("grid of eps", 0.0625)  # each has 8 equal steps
    exact = [make_report(norm="L2", eps=eps, protocol="exact") for eps in (0.5, 1.0)]
    assert what_keeps_apart(*exact, 1.0) is None  # no grid
