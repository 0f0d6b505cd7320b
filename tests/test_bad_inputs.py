"""What people hand to the Python API by mistake: told with the value and the fix, before compute, nothing written."""

import json
import re
from pathlib import Path

import datasets
import pytest
import torch

from hf_robust_ft import AdversarialTrainer, PixelSpace, RobustnessReport, ThreatModel, evaluate_robustness
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.provenance.tensor_hashes import hash_model


class Given:
    """What the rows below are made from; `model` is the one that must come out unchanged."""

    def __init__(self, make_trainer, make_model, dataset, images, processor, folder):
        self.make_trainer, self.dataset, self.images, self.processor = make_trainer, dataset, images, processor
        self.model, self.folder = make_model("resnet"), folder
        (folder / "afile").write_text("not a folder")
        (folder / "cut_off.json").write_text('{"clean_accuracy": 0.9, "adv')

    def trainer(self, **changes):
        return self.make_trainer(self.model, **changes)

    def train(self, **changes):
        return self.trainer(**changes).train()

    def evaluate(self, data=None, threat_model=None, **changes):
        threat_model = threat_model or ThreatModel("Linf", "8/255")
        space = PixelSpace.from_processor(self.processor)
        options = {"threat_model": threat_model, "pixel_space": space, "progress": False, **changes}
        return evaluate_robustness(self.model, self.dataset if data is None else data, **options)

    def changed(self, **columns):
        """The dataset with another value in a column of its batches."""
        rows = [self.dataset[index] for index in range(16)]
        return [{**row, **{name: change(row[name], at) for name, change in columns.items()}}
                for at, row in enumerate(rows)]  # fmt: skip


@pytest.fixture
def given(make_trainer, make_model, dataset, images, processor, tmp_path):
    return Given(make_trainer, make_model, dataset, images, processor, tmp_path)


def freeze(model):
    model.requires_grad_(False)


TRAINING = [
    ("a rate as text", lambda g: g.trainer(learning_rate="1e-4"), "learning_rate must be finite .*, got '1e-4'"),
    ("no such seed", lambda g: g.trainer(seed=-1), "seed must be in 0..4294967295, got -1"),
    ("half a seed", lambda g: g.trainer(data_seed=2**32), "data_seed must be in 0..4294967295, got 4294967296"),
    ("steps as text", lambda g: g.trainer(attack_steps="7"), "steps to be a whole number of at least 1, got '7'"),
    ("no steps at all", lambda g: g.trainer(max_steps=0), r"max_steps must be at least 1 \(or -1"),
    ("a negative decay", lambda g: g.trainer(weight_decay=-0.1), "weight_decay must be finite and not .*, got -0.1"),
    ("patience in words", lambda g: g.trainer(eps_schedule="auto", schedule_args={"patience": "three"}),
     "patience to be a whole number of at least 1, got 'three'"),
    ("eps of a list", lambda g: g.trainer(eps=["8/255"]), r"eps must be a number or .*, got \['8/255'\] of type list"),
    ("a norm of a list", lambda g: g.trainer(norm=["Linf"]), r"Unknown norm \['Linf'\]"),
    ("a file to write to", lambda g: g.trainer(output_dir=str(g.folder / "afile")), "is a file: name a folder"),
    ("below a file", lambda g: g.trainer(output_dir=str(g.folder / "afile" / "x")), "lies below .*, which is a file"),
    ("no training images", lambda g: g.trainer(train_dataset=g.dataset.select([])), "holds no images"),
    ("no evaluation images", lambda g: g.trainer(eval_dataset=g.dataset.select([])), "holds no images"),
    ("one of several empty", lambda g: g.trainer(eval_dataset={"a": g.dataset, "b": []}), "holds no images"),
    ("mean and std alone", lambda g: AdversarialTrainer(g.model, pixel_space=((0.5,) * 3, (0.5,) * 3)),
     r"pixel_space must be a PixelSpace, got tuple: give PixelSpace\(mean, std\)"),
    ("all is frozen", lambda g: (freeze(g.model), g.trainer()), "Every parameter of the model is frozen"),
    ("unmeasured metric", lambda g: g.trainer(
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="accuracy"),
     "metric_for_best_model='accuracy' is not measured: without compute_metrics there are loss, clean_accuracy"),
    ("no data to train on", lambda g: g.train(train_dataset=None), "requires a train_dataset"),
    ("bytes for pixels", lambda g: g.train(train_dataset=g.changed(pixel_values=lambda x, at: (x * 0).byte())),
     "pixel_values must be a float tensor, the image processor's output; got torch.uint8"),
    ("grey images", lambda g: g.train(train_dataset=g.changed(pixel_values=lambda x, at: x[:1])),
     r"must have shape \(N, 3, H, W\), got \(8, 1, 16, 16\)"),
    ("one odd size", lambda g: g.train(train_dataset=g.changed(pixel_values=lambda x, at: x[:, : 16 - at % 2])),
     "images of a batch must have one shape, got .*: resize or crop them"),
    ("labels in words", lambda g: g.train(train_dataset=g.changed(labels=lambda y, at: "cat")),
     "labels must be class indices, got .*'cat'"),
    ("one-hot labels", lambda g: g.train(train_dataset=g.changed(labels=lambda y, at: [0, 1, 0, 0])),
     r"one class index an image, int64 of shape \(8,\); got torch.int64 of shape \(8, 4\)"),
    ("a resume from nowhere", lambda g: g.trainer().train(resume_from_checkpoint="nowhere"), "nowhere"),
    ("nothing to resume", lambda g: g.trainer().train(resume_from_checkpoint=True), "There is no checkpoint to resume"),
]  # fmt: skip

EVALUATION = [
    ("a threat in words", lambda g: g.evaluate(threat_model="Linf 8/255"), r"a ThreatModel, .* got 'Linf 8/255'"),
    ("an attack in words", lambda g: g.evaluate(attack="apgd"), "attack must be an APGD, .* got 'apgd'"),
    ("a processor as map", lambda g: g.evaluate(pixel_space=g.processor), r"must be a PixelSpace, .*from_processor"),
    ("a path as data", lambda g: g.evaluate("colours"), "dataset|DataLoader"),
    ("a folder that is a file", lambda g: g.evaluate(results_dir=g.folder / "afile"), "give a writable folder"),
    ("one distribution alone", lambda g: g.evaluate(distributions="beta:2,5"), "'beta:2,5' alone: put it in brackets"),
    ("a cut-off report", lambda g: RobustnessReport.from_json(g.folder / "cut_off.json"), "cut_off.json is no JSON"),
    ("images without labels", lambda g: g.evaluate(
        with_pixel_values(g.images.remove_columns("label").add_column("label", [-1] * 48), g.processor)),
     "class indices in 0..K-1, got -1 .*filter them out"),
    ("no column of images", lambda g: g.evaluate(datasets.Dataset.from_dict({"label": [0, 1]})), "pixel_values"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "told"), [row[1:] for row in TRAINING + EVALUATION], ids=[row[0] for row in TRAINING + EVALUATION]
)
def test_told_before_compute_and_nothing_written(given, monkeypatch, tmp_path, call, told):
    monkeypatch.chdir(tmp_path)
    before = hash_model(given.model), torch.get_rng_state()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises((ValueError, TypeError, OSError)) as refused:
        call(given)
    message = " ".join(str(refused.value).split())
    assert re.search(told, message), message
    assert hash_model(given.model) == before[0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_bad_image_late_in_the_data_loses_no_checkpoint(given, tmp_path):
    """What was saved before the image was met is whole, and goes on once the image is mended."""
    good = given.changed(labels=lambda label, at: int(label))
    bad = [*good[:-1], {**good[-1], "labels": 7}]
    settings = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2, "seed": 3}
    with pytest.raises(ValueError, match=r"class indices in 0\.\.4-1, got 7"):
        given.train(train_dataset=bad, **settings)
    saved = sorted(Path(tmp_path, "out").glob("checkpoint-*"))
    assert all(json.loads((each / "trainer_state.json").read_text()) for each in saved)
    trainer = given.trainer(train_dataset=good, **settings)
    trainer.train(resume_from_checkpoint=str(saved[-1]) if saved else None)
    assert trainer.state.global_step == 4
