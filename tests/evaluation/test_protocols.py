"""The two protocols on one model, and what the report says of other points and distributions than the grid's."""

import numpy as np
import pytest
import torch
from colour_classifier import ColourClassifier

from hf_robust_ft import PixelClassifier, PixelSpace, ThreatModel, evaluate_robustness
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.evaluation.protocols import (
    PROTOCOLS,
    closing_attacks,
    evaluation_attack,
    get_protocol,
    resolve_epsilons,
)
from hf_robust_ft.metrics.robustness.curve import trapezoid_weights
from hf_robust_ft.reporting.comparability import measured_by

NAMES = ["beta:2,5", "truncnorm:4/255,1/255", "dirac:2/255"]


def threat(norm: str) -> ThreatModel:
    return ThreatModel(norm, {"Linf": "8/255", "L2": 0.6, "L1": 8.0}[norm])


@pytest.fixture
def measure(dataset, processor):
    def run(protocol, norm="Linf", **changes):
        options = {"threat_model": threat(norm), "pixel_space": PixelSpace.from_processor(processor), "progress": False}
        return evaluate_robustness(
            ColourClassifier(), dataset, protocol=protocol, **(options | {"checks": False, "batch_size": 20} | changes)
        )

    return run


@pytest.mark.parametrize("epsilons", ["8/255", 8 / 255])
def test_a_budget_alone_is_no_grid(epsilons):
    with pytest.raises(ValueError, match="alone: put it in brackets"):
        resolve_epsilons(epsilons, ThreatModel("Linf", "8/255"))


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_exact_is_nowhere_above_paper(measure, norm):
    paper, exact = (measure(protocol, norm) for protocol in ("paper", "exact"))
    assert paper.epsilons == exact.epsilons and len(paper.epsilons) == 9
    assert all(e <= p for e, p in zip(exact.accuracies, paper.accuracies, strict=True))
    assert exact.clean_accuracy == paper.clean_accuracy
    assert 0 < exact.adversarial_accuracy < exact.accuracies[4] < exact.clean_accuracy < 1  # a curve worth testing on
    assert all(
        e is not None and e <= p + 1e-12
        for e, p in zip(exact.smallest_epsilons, paper.smallest_epsilons, strict=True)
        if p is not None
    )


def test_expected_robustness_is_the_mean_share_of_eps_withstood(measure):
    exact = measure("exact")
    eps_g = exact.epsilons[-1]
    shares = [min(eps, eps_g) / eps_g if eps is not None else 1.0 for eps in exact.smallest_epsilons]
    assert exact.expected_robustness == pytest.approx(np.mean(shares), abs=1e-12)
    paper = measure("paper")
    assert paper.expected_robustness == pytest.approx(trapezoid_weights(paper.epsilons) @ np.array(paper.accuracies))
    assert {eps for eps in paper.smallest_epsilons if eps is not None} <= set(paper.epsilons)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_accuracies_agree_with_the_smallest_epsilons(measure, protocol):
    report = measure(protocol)
    smallest = np.array([np.inf if eps is None else eps for eps in report.smallest_epsilons])
    assert report.accuracies == [(smallest > eps).mean() for eps in report.epsilons]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_finer_grid_is_monotone_and_agrees_on_the_grid(measure, protocol):
    report = measure(protocol)
    assert report.accuracies_at(report.epsilons) == pytest.approx(report.accuracies, abs=1e-12)
    finer = report.accuracies_at(np.linspace(0, report.epsilons[-1], 200).clip(max=report.epsilons[-1]))
    assert finer == sorted(finer, reverse=True) and len(set(finer)) > len(set(report.accuracies))
    assert np.mean(finer) == pytest.approx(report.expected_robustness, abs=0.01)
    assert report.accuracies_at([]) == []
    for outside in ([-1e-6], [0, 9 / 255]):
        with pytest.raises(ValueError, match=r"known for eps in \[0, 8/255\]"):
            report.accuracies_at(outside)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_extreme_distributions_give_the_three_numbers(measure, protocol):
    report = measure(protocol)
    under = report.expected_robustness_under
    assert under("dirac:0") == pytest.approx(report.clean_accuracy, abs=1e-12)
    assert under("dirac:8/255") == pytest.approx(report.adversarial_accuracy, abs=1e-12)
    assert under("uniform") == pytest.approx(report.expected_robustness, abs=1e-12)
    assert under("beta:1,1") == pytest.approx(report.expected_robustness, abs=1e-12)
    assert under("dirac:3/255") == pytest.approx(report.accuracies[3], abs=1e-12)
    assert under("beta:1,9") > under("uniform") > under("beta:9,1")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_distributions_land_in_the_report(measure, protocol):
    plain, report = measure(protocol), measure(protocol, distributions=NAMES)
    assert plain.distributions == {} and report.accuracies == plain.accuracies
    assert report.distributions == {name: plain.expected_robustness_under(name) for name in NAMES}
    assert all(f"for eps ~ {name}" in str(report) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gauss:1", "Valid: uniform; beta:A,B"),
        ("beta:2", "Valid: uniform"),
        ("dirac:9/255", "Dirac needs an eps in"),
        (3, "3 is no"),
    ],
)
def test_a_bad_distribution_is_refused_before_any_attack(dataset, processor, name, message):
    model = ColourClassifier()
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(model, dataset, threat_model=threat("Linf"), distributions=[name], progress=False)
    assert model.forwards == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_every_find_is_a_misclassified_image_within_its_eps(dataset, processor, protocol, norm):
    space, batch = PixelSpace.from_processor(processor), stack_examples(list(dataset))
    classifier, labels = PixelClassifier(ColourClassifier(), space).eval(), batch["labels"]
    pixels = space.to_pixels(batch["pixel_values"]).clamp(0, 1)
    outcome = get_protocol(protocol).measure(
        classifier,
        pixels,
        labels,
        threat_model=threat(norm),
        epsilons=resolve_epsilons(None, threat(norm)),
        attack=evaluation_attack(),
    )
    predictions, distance = classifier(outcome.adversarial).argmax(1), threat(norm).ball(pixels).distance
    found = outcome.smallest_eps.isfinite()
    assert 0 < found.sum() < len(found) and outcome.smallest_eps.dtype == torch.float64
    assert torch.equal(predictions[found], outcome.wrong_classes[found])
    assert (predictions[found] != labels[found]).all()
    assert torch.equal(outcome.wrong_classes[~found], labels[~found])
    assert (distance(outcome.adversarial)[found] <= outcome.smallest_eps[found]).all()
    assert torch.equal(outcome.adversarial[~found], pixels[~found])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_at_eps_zero_only_clean_accuracy_is_counted(measure, protocol):
    report = measure(protocol, threat_model=ThreatModel("Linf", 0), epsilons=[0])
    assert report.clean_accuracy == report.adversarial_accuracy
    assert report.clean_accuracy == pytest.approx(report.expected_robustness, abs=1e-9)
    assert set(report.smallest_epsilons) == {0.0, None}


def test_an_unknown_protocol_lists_the_valid_ones():
    told = r"Unknown protocol 'Exact'\. Did you mean exact\? Valid protocols: paper, exact, reliable\."
    with pytest.raises(ValueError, match=told):
        get_protocol("Exact")


def test_l1_is_attacked_with_larger_eps_first(measure):
    assert {norm: evaluation_attack(norm=norm).larger_eps for norm in ("Linf", "L2", "L1")} == {
        "Linf": False, "L2": False, "L1": True,
    }  # fmt: skip
    report = measure("paper", "L1", epsilons=[0, 8.0])
    assert report.attack["larger_eps"] and measured_by(report) == "APGD-CE-10, larger eps first"


@pytest.mark.parametrize(
    ("norm", "classes", "told"),
    [
        ("Linf", 10, ["30, 3 targets, from where cross-entropy leads", "30, 9 targets sifted to 1, clean start"]),
        ("L2", 3, ["30, 2 targets, from where cross-entropy leads", "30, 2 targets sifted to 1, clean start"]),
        ("L1", 10, ["30, 9 targets sifted to 1, clean start, larger eps first"]),
        ("Linf", 2, []),
    ],
)
def test_what_closes_the_reliable_protocol(norm, classes, told):
    attacks = [str(attack) for attack in closing_attacks("reliable", norm, classes)]
    assert attacks == [*(f"APGD-DLR-TARGETED-{each}" for each in told), "Square, 300 queries"]
