"""What the paper prints for a cell, and what of ours is not as the paper's."""

import dataclasses

import pytest
from grid_results import make_result

from hf_robust_ft.experiments.grid.comparison import Configuration
from hf_robust_ft.experiments.grid.paper_comparison import is_measured_as_paper, paper_figure, trained_otherwise
from hf_robust_ft.experiments.paper.numbers import Scores
from hf_robust_ft.models.backbones import BACKBONES


@pytest.mark.parametrize("model", ["swin", "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k"])
def test_the_papers_figure_is_found_by_alias_and_hub_id(model):
    cell = Configuration(model, "stanford_cars", "4/255")
    assert paper_figure("Linf", cell, "hinge") == Scores(0.847, 0.432, 0.6641)
    assert paper_figure("L2", cell, "hinge") is None
    assert paper_figure("Linf", cell, "linear_warmup") is None


def test_the_papers_protocol_is_told_from_others():
    result = make_result(eps="8/255")
    assert is_measured_as_paper(result)
    for other in ({"protocol": "exact"}, {"attack": {"steps": 7}}, {"attack": {"loss": "dlr"}}, {"norm": "L2"}):
        assert not is_measured_as_paper(make_result(**other))
    fewer = dataclasses.replace(result.report, epsilons=result.report.epsilons[::2])
    chosen = result.report.with_metadata(split="validation")
    for report in (fewer, chosen):
        assert not is_measured_as_paper(dataclasses.replace(result, report=report))


def test_what_was_trained_otherwise_than_the_paper_is_told():
    papers = {"num_train_epochs": 50.0, "attack_steps": 7, "augmentation": "paper", "schedule_end": 0.74}
    assert trained_otherwise(dataclasses.replace(make_result(setting="hinge"), configuration=papers)) == []
    other = papers | {"num_train_epochs": 2.0, "schedule_end": 0.6, "max_train_samples": 64}
    found = [
        trained_otherwise(dataclasses.replace(make_result(setting=name), configuration=other))
        for name in ("hinge", "hinge:12,30")
    ]
    assert found[1] == ["num_train_epochs 2.0 (paper: 50)", "max_train_samples 64"]
    assert set(found[0]) - set(found[1]) == {"schedule_end 0.6 (paper: 0.74)"}
    frozen = dataclasses.replace(make_result(setting="fix"), configuration={"batch_norm": "frozen"})
    for model, told in (("swin", []), ("r50", ["batch_norm frozen (paper: trainer)"])):
        assert trained_otherwise(dataclasses.replace(frozen, model=model)) == told
        assert trained_otherwise(dataclasses.replace(frozen, model=BACKBONES[model].hub_id)) == told
