import dataclasses
import itertools
import re

import pytest
from huggingface_hub import ModelCard
from passed_checks import passed_checks
from PIL import Image

from hf_robust_ft import RobustnessReport
from hf_robust_ft.evaluation.reliability import short_verdict
from hf_robust_ft.reporting import plot_curves, plot_training, render_model_card, write_evidence
from hf_robust_ft.reporting.probing import probe_doubt

HISTORY = [
    {"epoch": 1.0, "step": 5, "loss": 1.0, "eps": 0.0},
    {"epoch": 1.0, "step": 5, "eval_clean_accuracy": 0.5, "eps": 0.0},
    {"epoch": 2.0, "step": 10, "loss": 0.8, "eps": 4 / 255},
    {"epoch": 2.0, "step": 10, "eval_clean_accuracy": 0.7, "eval_adversarial_accuracy": 0.3, "eps": 4 / 255},
    {"train_runtime": 3.0, "epoch": 2.0, "step": 10, "eps": 4 / 255},
]


@pytest.fixture
def report():
    return RobustnessReport(
        clean_accuracy=0.9,
        adversarial_accuracy=0.5,
        expected_robustness=0.7,
        epsilons=[0.0, 2 / 255, 4 / 255],
        accuracies=[0.9, 0.7, 0.5],
        threat_model={"norm": "Linf", "eps": 4 / 255},
        attack={"steps": 10, "loss": "ce", "random_start": False, "restarts": 1, "select": "fooled"},
        protocol="paper",
        num_samples=200,
        checks=[dataclasses.asdict(check) for check in passed_checks()],
        metadata={
            "model_name": "Swin on flowers",
            "base_model": "microsoft/swin-tiny-patch4-window7-224",
            "dataset": "someone/flowers",
            "dataset_on_hub": True,
            "split": "test",
            "training": {"eps": "4/255", "eps_schedule": "hinge"},
            "versions": {"torch": "2.14.1"},
            "command": "hf-robust-ft train --config paper_default",
        },
    )


def test_metadata_is_what_the_hub_reads(report):
    card = ModelCard(render_model_card(report, ["curve.png"]))
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")
    assert data.base_model == "microsoft/swin-tiny-patch4-window7-224" and data.datasets == ["someone/flowers"]
    assert {"hf_robust_ft", "adversarial-robustness", "Linf-4-over-255"} <= set(data.tags)
    assert data.license is None
    results = {result.metric_type: result for result in data.eval_results}
    assert {kind: result.metric_value for kind, result in results.items()} == {
        "accuracy": 0.9, "adversarial_accuracy": 0.5, "expected_robustness": 0.7,
    }  # fmt: skip
    assert results["adversarial_accuracy"].metric_args == {
        "norm": "Linf", "eps": "4/255", "attack": "APGD-CE-10", "steps": 10, "protocol": "paper", "samples": 200,
        "reliability": "ok",
    }  # fmt: skip


def test_body_says_what_was_measured_and_how_far_to_trust_it(report):
    text = render_model_card(report, ["curve.png"])
    for part in (
        "# Swin on flowers", "90.00 %", "50.00 %", "70.00 %", "by up to 4/255 of the",
        "APGD-CE-10 from the clean image", "200 images of someone/flowers (test split)",
        "![curve.png](curve.png)", "| eps_schedule | hinge |",
        "`hf-robust-ft train --config paper_default`", "torch 2.14.1.", "not a certificate",
    ):  # fmt: skip
        assert part in text, part
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text


def test_a_model_that_was_only_measured_is_not_called_trained_or_robust(report):
    facts = {name: value for name, value in report.metadata.items() if name not in ("training", "model_name")}
    text = render_model_card(dataclasses.replace(report, metadata=facts, protocol="exact"))
    assert "# Robustness of microsoft/swin-tiny-patch4-window7-224\n" in text
    assert (
        "microsoft/swin-tiny-patch4-window7-224 keeps its answer" in text
        and "from the clean image in protocol *exact*." in text
    )
    assert 'pipeline("image-classification", "microsoft/swin-tiny-patch4-window7-224")' in text
    assert "fine-tuned" not in text and "Trained" not in text and "\n\n\n" not in text
    names = [result.metric_name for result in ModelCard(text).data.eval_results]
    assert names[1] == "Adversarial accuracy (Linf 4/255, APGD-CE-10, exact)"


DATA_FACTS = {
    "dataset": "Donghyun99/FGVC-Aircraft",
    "dataset_alias": "fgvc_aircraft",
    "dataset_commit": "3237e2c15db36fa9016794561b7aae6b49eef9a2",
    "dataset_revision": "main",
    "dataset_license": "non-commercial research",
    "base_model_license": "mit",
    "dataset_citation": "Maji et al. arXiv:1306.5151, 2013.",
    "dataset_note": "The test split is a draw.",
    "split_sizes": {"train": 3332, "validation": 3333, "test": 1000},
    "paper_split_sizes": {"test": 1000},
    "skipped_images": {"train": [{"index": 1, "file": "a.png", "reason": "a.png: truncated"}] * 2, "test": []},
    "transforms": {"text": "Evaluation images: upright RGB. Training images: flip, then the same."},
    "recipes": ["paper_default", "lora"],
    "training": {"lora_rank": 8, "ema_decay": 0.999, "ema_use": "save"},
    "probe": {
        "epochs": 60.0,
        "step": 90,
        "eps": "8/255",
        "validation_images": 500,
        "clean_accuracy": 0.61,
        "adversarial_accuracy": 0.23,
        "guessing": 0.01,
    },
}


def test_a_probed_head_that_only_guesses_is_warned_of_in_the_card(report):
    probe = DATA_FACTS["probe"] | {"guessing": 0.22}
    text = render_model_card(dataclasses.replace(report, metadata=report.metadata | DATA_FACTS | {"probe": probe}))
    assert (
        "**Warning.** Under attack at 8/255 the probed head is right on 23.0% of 500 validation images, within" in text
    )
    assert probe_doubt(probe) in text and probe_doubt(None) is None
    assert probe_doubt(probe | {"validation_images": 50_000}) is None  # no noise


def test_the_data_of_a_run_are_in_its_card(report):
    text = render_model_card(dataclasses.replace(report, metadata=report.metadata | DATA_FACTS))
    data = text.split("## Data\n\n")[1].split("\n## ")[0]
    assert data == (
        "Donghyun99/FGVC-Aircraft (fgvc_aircraft), revision 3237e2c15db36fa9016794561b7aae6b49eef9a2: 3332 images in "
        "train, 3333 images in validation, 1000 images in test.\n"
        "The test split is a draw.\n"
        "Left out, because they cannot be decoded: 2 of train (named in the report).\n"
        "Evaluation images: upright RGB. Training images: flip, then the same.\n\n"
        "Licence of the images: non-commercial research. Licence of the pretrained weights: mit. "
        "Please cite: Maji et al. arXiv:1306.5151, 2013.\n"
    )
    assert "The low-rank updates are merged" in text and "are the average over training steps" in text
    assert "(RoLI), for 60 epochs; training started from the best by validation: right on 61.00 % of 500 images" in text
    assert "and on 23.00 % under attack at Linf 8/255." in text and "is right on 23.0%" not in text
    assert "Recipes: paper_default, lora." in text and "| lora_rank | 8 |" in text
    assert "\n\n\n" not in text and "None" not in text
    assert ModelCard(text).data.datasets == ["Donghyun99/FGVC-Aircraft"]


def test_a_card_says_which_branch_of_a_method_its_weights_are(report):
    def card(**training):
        training = report.metadata["training"] | training
        return render_model_card(dataclasses.replace(report, metadata=report.metadata | {"training": training}))

    text = card(twins_lambda=0.4)
    assert "In training (TWINS), half of each batch" in text and "| twins_lambda | 0.4 |" in text
    assert "In training (AutoLoRA), low-rank updates" in card(autolora=True, autolora_rank=8)
    assert "TWINS" not in card() and "AutoLoRA" not in card() and "\n\n\n" not in text


@pytest.mark.parametrize(
    ("facts", "data"),
    [
        ({"split_sizes": {"test": 5}}, "someone/flowers: 5 images in test.\n"),
        (
            {"split_sizes": {"test": 5}, "paper_split_sizes": {"test": 9}},
            "someone/flowers: 5 images in test.\nThe paper's sizes are 9 (test).\n",
        ),
        (
            {"transforms": {"text": "Evaluation images: as they are."}},
            "someone/flowers.\nEvaluation images: as they are.\n",
        ),
        (
            {"split_sizes": {"test": 5}, "streaming": {"shuffle_buffer": 9}, "dataset_revision": "v1"},
            "someone/flowers, revision v1: 5 images in test; training images were streamed.\n",
        ),
        (
            {"split_sizes": {"test": 5}, "dataset_license": "MIT"},
            "someone/flowers: 5 images in test.\n\nLicence of the images: MIT.\n",
        ),
    ],
    ids=["sizes", "another_size", "transforms", "stream", "licence"],
)
def test_what_is_not_known_of_the_data_leaves_no_gap(report, facts, data):
    text = render_model_card(dataclasses.replace(report, metadata=report.metadata | facts))
    assert text.split("## Data\n\n")[1].split("\n## ")[0] == data
    assert "\n\n\n" not in text


@pytest.mark.parametrize(("use", "published"), [("eval", False), ("save", True), ("no", True)])
def test_a_card_says_when_other_weights_were_measured(report, use, published):
    text = render_model_card(report.with_metadata(training={"ema_decay": 0.999, "ema_use": use}))
    assert ("**These are not the weights that were measured**" in text) == (not published)


def test_a_card_without_metadata_is_whole(report):
    bare = RobustnessReport(**{**report.__dict__, "metadata": {}})
    text = render_model_card(bare)
    assert "# Robust image classifier" in text and "None" not in text and "## Training" not in text
    assert ModelCard(text).data.base_model is None


def test_evidence_is_complete(report, tmp_path):
    write_evidence(report, tmp_path / "run", HISTORY)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"robustness_report.json", "accuracy_eps_curve.png", "training.png", "README.md"}
    assert RobustnessReport.from_json(tmp_path / "run" / "robustness_report.json") == report
    shown = re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / "run" / "README.md").read_text())
    assert set(shown) <= names and len(shown) == 2


def test_pictures_are_drawn_and_repeat_byte_for_byte(report, tmp_path, rendered_pictures):
    for attempt in ("a", "b"):
        plot_curves({"hinge": report, "fix": report}, tmp_path / f"curve_{attempt}.png")
        plot_training({"hinge": HISTORY}, tmp_path / f"training_{attempt}.png")
    for name in ("curve", "training"):
        first, second = ((tmp_path / f"{name}_{attempt}.png").read_bytes() for attempt in ("a", "b"))
        assert first == second
        colours = Image.open(tmp_path / f"{name}_a.png").convert("RGB").getcolors(maxcolors=1 << 20)
        assert len(colours) > 20  # axes, text and lines, not a blank page


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table that begins with `heading`."""
    start = text.splitlines().index(heading)
    rows = itertools.takewhile(lambda line: line.startswith("|"), text.splitlines()[start:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture
def full(report):
    """A report with everything in it."""
    return dataclasses.replace(
        report,
        confidence_intervals={
            "level": 0.95,
            "clean_accuracy": [0.85, 0.94],
            "adversarial_accuracy": [0.44, 0.56],
            "expected_robustness": [0.66, 0.75],
            "accuracies": [[0.85, 0.94], [0.6, 0.8], [0.44, 0.56]],
            "autoattack_accuracy": [0.31, 0.57],
            "method": "Clopper-Pearson",
        },
        per_class=[
            {"class": f"flower {index}", "samples": 100 + index, "clean_accuracy": 0.9, "adversarial_accuracy": 0.5,
             "expected_robustness": 0.7}
            for index in range(2)
        ],
        distributions={"beta:2,5": 0.76},
        autoattack_accuracy=0.4375,
        autoattack_samples=64,
        checks=[
            {"name": "monotone", "passed": True, "value": 0.0, "sentence": "More room does not hinder."},
            {"name": "converged", "passed": False, "value": 0.1, "sentence": "The attack stopped early."},
        ],
    )  # fmt: skip


RESULTS = "| measured | attack | accuracy at Linf 4/255 | expected robustness |"


def test_results_have_an_interval_where_there_is_one(full, report):
    assert table(render_model_card(full), RESULTS)[2:] == [
        ["clean", "none", "90.00 % (85.00 to 94.00)", ""],
        ["paper (doubtful)", "APGD-CE-10", "**50.00 %** (44.00 to 56.00)", "**70.00 %** (66.00 to 75.00)"],
        ["converged", "not measured (`--attack_steps auto`)", "", ""],
        ["reliable", "not measured (`--protocol reliable`)", "", ""],
        ["AutoAttack (doubtful)", "standard, 64 images, the first of the data", "43.75 % (31.00 to 57.00)", ""],
        ["for eps ~ beta:2,5 (doubtful)", "as above", "", "76.00 %"],
    ]
    assert "Intervals: Clopper-Pearson over the images" in render_model_card(full)
    old = {key: pair for key, pair in full.confidence_intervals.items() if key not in ("autoattack_accuracy", "method")}
    earlier = render_model_card(dataclasses.replace(full, confidence_intervals=old))
    assert "Intervals: bootstrap over the images" in earlier and "| 43.75 % |  |" in earlier
    plain = render_model_card(dataclasses.replace(report, checks=[]))
    for absent in ("interval", "AutoAttack", "## By class", "## Can these numbers be trusted?", "eps ~"):
        assert absent not in plain, absent


def rounds(*accuracies, settled=True, **more):
    scores = [
        {"steps": 10 * 2**number, "adversarial_accuracy": each, "expected_robustness": each + 0.1}
        for number, each in enumerate(accuracies)
    ]
    return {"limit": 160, "settled": settled, "rounds": scores, **more}


@pytest.mark.parametrize(
    ("protocol", "convergence", "rows"),
    [
        ("paper", rounds(0.6, 0.5), {"paper": "60.00 %", "converged": "**50.00 %**", "reliable": ""}),
        (
            "paper",
            rounds(0.6, 0.5, settled=False),
            {"paper": "60.00 %", "converged (not settled)": "**50.00 %**", "reliable": ""},
        ),
        ("reliable", rounds(0.6, 0.55), {"paper": "60.00 %", "converged": "55.00 %", "reliable": "**50.00 %**"}),
        ("exact", None, {"exact": "**50.00 %**", "converged": "", "reliable": ""}),
    ],
    ids=["converged", "not_settled", "reliable", "exact"],
)
def test_clean_paper_converged_and_reliable_stand_in_one_table(report, protocol, convergence, rows):
    found = dataclasses.replace(report, protocol=protocol, convergence=convergence or {})
    cells = table(render_model_card(found), RESULTS)[2:]
    assert {row[0].removesuffix(" (doubtful)"): row[2] for row in cells} == {"clean": "90.00 %"} | rows


def test_a_figure_of_fewer_steps_is_not_called_the_papers(report):
    few = dataclasses.replace(report, attack=report.attack | {"steps": 2})
    assert [row[:2] for row in table(render_model_card(few), RESULTS)[3:4]] == [["fixed steps", "APGD-CE-2"]]


@pytest.mark.parametrize("accuracy", [0.8, 0.1])
def test_the_verdict_stands_on_top(report, accuracy):
    found = dataclasses.replace(report, adversarial_accuracy=accuracy, accuracies=[0.9, 0.85, accuracy])
    first, second = render_model_card(found).split("# Swin on flowers\n\n")[1].split("\n\n")[:2]
    assert first.startswith(f"**{'R' if accuracy > 0.5 else 'Not r'}obust at Linf 4/255**: {accuracy:.1%}")
    assert second.startswith("**Reliability: ok.**")


@pytest.mark.parametrize(
    "drop", ["confidence_intervals", "distributions", "autoattack_accuracy", "checks", "per_class"]
)
def test_every_table_is_whole_whatever_is_missing(full, report, drop):
    text = render_model_card(dataclasses.replace(full, **{drop: getattr(report, drop)}), ["curve.png"])
    lines = text.splitlines()
    for above, line, below in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("|") and not above.startswith("|"):
            assert above == "" and below.startswith("|---"), line
        if line.startswith("|") and below.startswith("|"):
            assert line.count("|") == below.count("|"), below
        if line.startswith("## "):
            assert above == "" and below == "", line
    assert "\n\n\n" not in text and "None" not in text


def test_failed_checks_are_warnings(full):
    section = render_model_card(full).split("## Can these numbers be trusted?")[1].split("##")[0]
    assert section.split("\n\n")[1].splitlines() == [
        "- More room does not hinder.",
        "- **Warning.** The attack stopped early.",
    ]


def test_autoattack_is_a_result_of_its_own(full, report):
    results = {result.metric_type: result for result in ModelCard(render_model_card(full)).data.eval_results}
    assert results["autoattack_accuracy"].metric_value == 0.4375
    assert results["autoattack_accuracy"].metric_name == "AutoAttack accuracy (Linf 4/255; doubtful)"
    assert results["autoattack_accuracy"].metric_args == {
        "norm": "Linf", "eps": "4/255", "attack": "AutoAttack", "protocol": "standard", "samples": 64,
        "reliability": short_verdict(full.reliability).removesuffix(", autoattack"),
    }  # fmt: skip
    assert len(ModelCard(render_model_card(report)).data.eval_results) == 3


@pytest.mark.parametrize(("count", "shown"), [(2, True), (20, True), (21, False)])
def test_classes_are_listed_up_to_twenty(full, count, shown):
    rows = [{**full.per_class[0], "class": f"flower {index}"} for index in range(count)]
    text = render_model_card(dataclasses.replace(full, per_class=rows))
    assert ("## By class" in text) == shown
    if shown:
        found = table(text, "| class | images | clean | adversarial (doubtful) | expected (doubtful) |")[2:]
        assert found == [[f"flower {index}", "100", "90.00 %", "50.00 %", "70.00 %"] for index in range(count)]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("protocol", ["paper", "exact"])
def test_threat_model_and_protocol_are_told_in_words(full, norm, protocol):
    changed = dataclasses.replace(full, threat_model={"norm": norm, "eps": 0.5}, protocol=protocol)
    text = render_model_card(changed)
    assert f"({norm} 0.5)" in text and f"Protocol *{protocol}*" in text
    assert ("every pixel by up to" in text) == (norm == "Linf")


@pytest.mark.parametrize(
    ("lowest", "told"),
    [
        (1.0, "- Training saw what its attacks found: at least 100 %"),
        (0.37, "- **Warning.** Training did not see what its attacks found: over a stretch, 37 %"),
    ],
)
def test_the_card_tells_whether_training_saw_its_attacks(report, lowest, told):
    assert "its attacks found" not in render_model_card(report)
    training = {"batch_norm": "trainer", "attack_loss_seen": {"overall": 0.9, "lowest": lowest}}
    card = render_model_card(report.with_metadata(training=training))
    assert told in card.partition("## Can these numbers be trusted?")[2]
    assert "| batch_norm | trainer |" in card


@pytest.mark.parametrize("protocol", ["paper", "exact", "reliable"])
def test_limitations_name_as_many_attacks_as_were_run(full, protocol):
    text = render_model_card(dataclasses.replace(full, protocol=protocol))
    found_by = "the attacks named above" if protocol == "reliable" else "one attack"
    assert f"- The figures are upper bounds found by {found_by}, not a certificate" in text
