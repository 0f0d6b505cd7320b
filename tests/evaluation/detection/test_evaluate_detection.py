"""Box mAP under attack."""

import copy
import importlib.util

import pytest
import torch
from tiny_detectors import DETECTORS, detr, fitted, squares
from torch.utils.data import DataLoader
from transformers import DeformableDetrImageProcessor, DetrImageProcessor

from hf_robust_ft import APGD, DetectionReport, ThreatModel, evaluate_detection
from hf_robust_ft.evaluation.batches import stack_boxes
from hf_robust_ft.evaluation.detection.average_precision import AveragePrecision
from hf_robust_ft.evaluation.detection.boxes import MOST_DETECTIONS, detected_boxes, labelled_boxes
from hf_robust_ft.reporting import write_evidence
from hf_robust_ft.reporting.detection.card import check_consistent_detection

BUDGET = ThreatModel("Linf", "32/255")
GRID = ["0", "16/255", "32/255"]


@pytest.fixture(scope="module")
def data():
    return squares(6)


@pytest.fixture(scope="module")
def learnt(data):
    return fitted(detr(auxiliary_loss=False), data, steps=40)


@pytest.fixture(scope="module")
def report(learnt, data):
    return evaluate_detection(
        learnt, data, threat_model=BUDGET, epsilons=GRID, attack_steps=3, batch_size=4, progress=False
    )


@pytest.mark.parametrize(
    ("kind", "processor"), [("detr", DetrImageProcessor()), ("deformable_detr", DeformableDetrImageProcessor())]
)
def test_boxes_are_read_as_the_image_processor_reads_them(data, kind, processor):
    model = DETECTORS[kind]().eval()
    with torch.no_grad():
        outputs = model(stack_boxes(data[:2])["pixel_values"])
    ours = detected_boxes(outputs, 3, (20, 40))
    theirs = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(20, 40)] * 2)
    for found, expected in zip(ours, theirs, strict=True):
        order = expected["scores"].sort(descending=True, stable=True).indices[:MOST_DETECTIONS]
        assert torch.allclose(found["scores"], expected["scores"][order])
        assert torch.equal(found["labels"], expected["labels"][order])
        assert torch.allclose(found["boxes"], expected["boxes"][order], atol=1e-4)


def test_map_is_one_where_all_is_found_and_falls_with_what_is_missed(data):
    labelled = labelled_boxes([each["labels"] for each in data], (32, 32))
    perfect = [{**each, "scores": torch.ones(len(each["labels"]))} for each in labelled]
    scores = AveragePrecision()
    scores.update(perfect, labelled)
    assert scores.compute() == (1.0, 1.0)
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    missed = AveragePrecision()
    missed.update([nothing, *perfect[1:]], labelled)
    assert 0 < missed.compute().map < 1


def test_the_curve_begins_clean_never_rises_and_its_mean_is_the_expected_map(report, learnt, data):
    assert report.epsilons == [0, 16 / 255, 32 / 255] and len(report.maps) == 3
    assert report.maps == sorted(report.maps, reverse=True) and report.losses == sorted(report.losses)
    assert report.clean_map == report.maps[0] > report.adversarial_map == report.maps[-1]
    assert report.expected_map == pytest.approx((report.maps[0] / 2 + report.maps[1] + report.maps[2] / 2) / 2)
    scores = AveragePrecision()
    batch = stack_boxes(data)
    with torch.no_grad():
        scores.update(
            detected_boxes(learnt(batch["pixel_values"]), 3, (32, 32)), labelled_boxes(batch["labels"], (32, 32))
        )
    assert report.clean_map == pytest.approx(scores.compute().map, abs=1e-6)
    assert (report.num_samples, report.num_boxes) == (6, sum(len(each["labels"]["boxes"]) for each in data))
    check_consistent_detection(report)


def test_more_room_keeps_what_was_found_with_less(learnt, data):
    """Two steps in a large ball may do worse than three in a small one; the loss does not fall all the same."""
    found = evaluate_detection(
        learnt, data, threat_model=ThreatModel("Linf", 1.0), epsilons=[0, "8/255", 1.0], attack_steps=1, progress=False
    )
    assert found.losses == sorted(found.losses)


def test_a_loader_gives_what_its_dataset_gives_and_the_model_is_left_as_it_was(report, learnt, data):
    model = copy.deepcopy(learnt).train()
    random = torch.get_rng_state()
    loader = DataLoader(data, batch_size=3, collate_fn=stack_boxes, generator=torch.Generator())
    again = evaluate_detection(model, loader, threat_model=BUDGET, epsilons=GRID, attack_steps=3, progress=False)
    assert again.maps == pytest.approx(report.maps, abs=1e-6) and again.image_digest == report.image_digest
    assert model.training and torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_at_eps_zero_nothing_is_attacked(learnt, data):
    found = evaluate_detection(learnt, data, threat_model=ThreatModel("Linf", 0), progress=False)
    assert found.epsilons == [0.0] and found.clean_map == found.adversarial_map
    assert found.expected_map == pytest.approx(found.clean_map)
    assert found.passes["gradients"] == 0


def test_a_report_is_read_back_as_it_was_written_and_its_card_tells_its_limits(report, tmp_path):
    write_evidence(report, tmp_path)
    assert DetectionReport.from_json(tmp_path / "robustness_report.json") == report
    card = (tmp_path / "README.md").read_text()
    assert "**Experimental**" in card and "--attack_steps 3" in card
    (tmp_path / "other.json").write_text('{"task": "image-segmentation"}')
    with pytest.raises(ValueError, match="no report of object-detection"):
        DetectionReport.from_json(tmp_path / "other.json")
    with pytest.raises(ValueError, match="its curve gives"):
        check_consistent_detection(DetectionReport(**{**report.to_dict(), "clean_map": 0.99}))


REFUSED = [
    ({"attack": APGD(loss="ce")}, "one of the model's loss"),
    ({"attack_steps": 0}, "whole number of at least 1, got 0"),
    ({"attack_steps": "auto"}, "there is no 'auto'"),
    ({"threat_model": "4/255"}, "threat_model must be a ThreatModel"),
    ({"epsilons": ["0", "1/255"]}, "must end at the threat model's eps"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_settings_that_mean_nothing_are_refused_before_the_model_is_asked(data, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate_detection(None, data, **{"threat_model": BUDGET, "progress": False, **changes})


def test_a_classifier_and_data_without_boxes_are_refused(learnt, data, make_model):
    with pytest.raises(ValueError, match=r"The model answers with \['logits'\], and a DETR-like detector"):
        evaluate_detection(make_model("vit"), squares(2, size=16), threat_model=BUDGET, progress=False)
    empty = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    with pytest.raises(ValueError, match="No image of the data has a labelled box"):
        evaluate_detection(
            learnt,
            [{**data[0], "labels": empty}],
            threat_model=BUDGET,
            epsilons=GRID[::2],
            attack_steps=1,
            progress=False,
        )


def test_what_measures_map_is_named_where_it_is_missing(learnt, data, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hf_robust_ft\[detection\]'"):
        evaluate_detection(learnt, data, threat_model=BUDGET)
