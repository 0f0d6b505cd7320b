"""The embedded example's bookkeeping; that it trains is in test_notebooks.py."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY

from hf_robust_ft import RobustnessReport
from hf_robust_ft.experiments import quickstart as example

CARD = REPOSITORY / "model_cards" / "quickstart" / "robustness_report.json"


@pytest.fixture
def trained(monkeypatch):
    """The seeds that were trained, each in no time."""
    seeds = []

    def fine_tune(model_args, data_args, args, metadata):
        seeds.append(args.seed)
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        report = RobustnessReport.from_json(CARD).with_metadata(**metadata)
        report.to_json(folder / "robustness_report.json")
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": []}))
        return SimpleNamespace(robustness_report=report)

    monkeypatch.setattr(example, "fine_tune", fine_tune)
    return seeds


def test_a_finished_run_is_trained_no_second_time(trained, tmp_path):
    first = example.quickstart(tmp_path / "out", seeds=[3, 4])
    again = example.quickstart(tmp_path / "out", seeds=[3, 4, 5])
    assert trained == [3, 4, 5]
    assert {seed: again["hinge"][seed] for seed in (3, 4)} == first["hinge"]


def test_another_run_is_not_written_over(trained, tmp_path):
    example.quickstart(tmp_path / "out", seeds=[3])
    with pytest.raises(ValueError, match=r"holds another run: seed 3 .*4.*another --output_dir"):
        example.quickstart(tmp_path / "out", seeds=[4])
    assert trained == [3]


def test_a_folder_of_other_files_is_left_alone(trained, tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="holds other files: name a new folder"):
        example.quickstart(tmp_path)
    assert not trained and [each.name for each in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize("images", [-1, 0.5])
def test_autoattack_is_for_a_number_of_images(trained, tmp_path, images):
    with pytest.raises(ValueError, match="number of images"):
        example.quickstart(tmp_path / "out", autoattack=images)
    assert not trained
