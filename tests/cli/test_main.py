import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

import hf_robust_ft
import hf_robust_ft.evaluation.measure_batch as evaluation_work
from hf_robust_ft import AttackResult, RobustnessReport
from hf_robust_ft.cli import main as cli
from hf_robust_ft.cli.main import main
from hf_robust_ft.models import checkpoint_source
from hf_robust_ft.models.timm_classifier import build_timm_classifier
from hf_robust_ft.provenance.source_names import HubAnswer


@pytest.fixture
def train_flags(checkpoint, imagefolder, tmp_path):
    return [
        "--model", checkpoint, "--dataset", imagefolder, "--output_dir", str(tmp_path / "run"), "--eps", "8/255",
        "--num_train_epochs", "4", "--per_device_train_batch_size", "8", "--validation_size", "0.25",
        "--attack_steps", "2", "--eval_attack_steps", "2", "--use_cpu",
        "--disable_tqdm", "true",
    ]  # fmt: skip


def test_train_then_evaluate(train_flags, imagefolder, tmp_path, capsys, rendered_pictures):
    main(["train", *train_flags])
    run = tmp_path / "run"
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "robustness_report.json", "README.md"):
        assert (run / name).is_file(), name
    for picture in ("accuracy_eps_curve.png", "training.png"):
        assert Image.open(run / picture).size[0] > 500
    report = RobustnessReport.from_json(run / "robustness_report.json")
    assert report.num_samples == 16 and len(report.epsilons) == 9
    assert report.metadata["training"]["eps_schedule"] == "hinge" and report.metadata["dataset"] == "colours"
    assert report.metadata["split_sizes"] == {"train": 24, "validation": 8, "test": 16}
    assert "rotation by up to 2 degrees" in report.metadata["transforms"]["text"]
    card = (run / "README.md").read_text()
    assert str(tmp_path) not in card and f"{report.expected_robustness:.2%}".replace("%", " %") in card
    printed = capsys.readouterr().out
    assert "expected robustness" in printed and "From recipe paper_default: augmentation=paper" in printed

    flags = ["--model", str(run), "--dataset", imagefolder, "--eps", "8/255", "--attack_steps", "2"]
    main(["evaluate", *flags, "--output_dir", str(tmp_path / "again"), "--device", "cpu"])
    again = RobustnessReport.from_json(tmp_path / "again" / "robustness_report.json")
    assert again.accuracies == report.accuracies


def test_a_finished_run_is_not_overwritten_and_can_be_resumed(train_flags, tmp_path, capsys):
    main(["train", *train_flags])
    assert (tmp_path / "run" / "checkpoint-12").is_dir()
    with pytest.raises(SystemExit) as stop:
        main(["train", *train_flags])
    assert stop.value.code == 2 and "--resume_from_checkpoint last" in capsys.readouterr().err
    before = (tmp_path / "run" / "robustness_report.json").read_text()
    main(["train", *train_flags, "--resume_from_checkpoint", "last"])
    assert f"Training goes on from {tmp_path / 'run' / 'checkpoint-12'}." in capsys.readouterr().out
    after = json.loads((tmp_path / "run" / "robustness_report.json").read_text())
    assert after["accuracies"] == json.loads(before)["accuracies"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--eps", "4"], "Did you mean eps='4/255'"),
        (["--eps", "4/0"], "divides by zero"),
        (["--norm", "L3"], "Valid norms: Linf"),
        (["--eps_schedule", "hing"], "Valid schedules: none, constant, linear_warmup, hinge"),
        (["--schedule", "hing"], "Valid schedules: none, constant, linear_warmup, hinge"),
        (["--schedule", "hinge", "--eps_schedule", "hinge"], "--schedule and --eps_schedule are the same option"),
        (["--schedule", "hinge", "--eps-schedule=hinge"], "--schedule and --eps_schedule are the same option"),
        (["--model", "swim"], "Unknown model 'swim'. Nearest: swin"),
        (["--head", "old"], "Unknown head 'old'. Valid: auto, new, keep, zero_shot"),
        (["--prompts", "a {}"], "prompts are for head='zero_shot'"),
        (["--architecture", "timm/resnet18"], "architecture is for weight files"),
        (["--shuffle_buffer", "10"], "shuffle_buffer does nothing without --streaming"),
        (["--streaming"], "give --max_steps N with --streaming"),
        (["--streaming", "--max_steps", "4"], "give --schedule_granularity step with --streaming"),
        (["--lora_alpha", "8"], "lora_alpha does nothing without lora_rank"),
        (["--freeze", "backbone"], "leave head_learning_rate unset"),
        (["--gpu", "t4"], "gpu: only with --dry_run"),
        (["--dry-run", "--gpu", "h10"], "Unknown gpu 'h10'. Did you mean h100"),
        (["--attack_loss", "cw"], "Valid losses: ce"),
        (["--augmentation", "mixup"], "Valid: none, paper"),
        (["--schedule_start", "0.9"], "is after schedule_end"),
        (["--dataset", "/no/such/folder"], "is not a folder"),
        (["--label_column", "species"], "has no column 'species'"),
        (["--max_train_samples", "0"], "must be at least 1"),
        (["--resume_from_checkpoint", "last"], "no checkpoint to resume from"),
        (["--resume_from_checkpoint", "nowhere"], "is not a folder"),
        (["--attack_warm_start"], "augmentation=paper varies in every epoch: give --augmentation none"),
        (["--attack_warm_start", "--dry-run"], "augmentation=paper varies in every epoch: give --augmentation none"),
        (["--attack_warm_start", "--streaming", "--max_steps", "4"], "A stream has no epochs to go on from"),
        (["--no_such_flag", "1"], "Unknown option --no_such_flag"),
        (["--learning-rat=1"], "Unknown option --learning-rat=1. Did you mean --learning_rate"),
        (["--config", "no_such_recipe"], "There is no recipe 'no_such_recipe'"),
        (["--max_eval_samples", "-3"], "max_eval_samples must be at least 1"),
        (["--model", "/no/such/weights.pt"], "There is no file or folder /no/such/weights.pt"),
        (["--num_train_epochs", "0"], "num_train_epochs must be positive, got 0.0"),
        (["--num_train_epochs", "0", "--dry-run"], "num_train_epochs must be positive, got 0.0"),
        (["--head", "old"], "Unknown head 'old'. Valid: auto, new, keep, zero_shot"),
    ],
    ids=lambda value: "_".join(value).strip("-") if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(train_flags, tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        main(["train", *train_flags, *changes])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_results_without_checkpoints_are_not_overwritten_either(train_flags, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_text("somebody's work")
    with pytest.raises(SystemExit) as stop:
        main(["train", *train_flags])
    assert stop.value.code == 2
    assert "holds the results of an earlier run (model.safetensors)" in capsys.readouterr().err
    assert (run / "model.safetensors").read_text() == "somebody's work" and len(list(run.iterdir())) == 1


def test_recipes_compose_and_flags_override_them(train_flags, tmp_path, capsys):
    (tmp_path / "short.yaml").write_text("num_train_epochs: 9\nattack_steps: 1\nrobust_eval: 'no'\nema_decay: 0.9\n")
    flags = ["--config", "paper_default", "--config", "linear_probe", "--config", str(tmp_path / "short.yaml")]
    main(["train", *flags, *train_flags, "--num_train_epochs", "1", "--schedule", "constant", "--ema_decay", "none"])
    printed = capsys.readouterr().out
    assert "From recipe paper_default + linear_probe + short: augmentation=paper" in printed
    assert "learning_rate=0.004" in printed and "freeze=backbone" in printed and "num_train_epochs=" not in printed
    assert "Not attacked (robust_eval=no" in printed
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["num_train_epochs"] == 1 and state["log_history"][0]["eps"] == pytest.approx(8 / 255)


def test_train_gives_each_image_an_id_for_a_per_sample_schedule(train_flags, tmp_path, capsys):
    schedule = ["--schedule", "per_sample", "--schedule_args", "levels=2", "--robust_eval", "no"]
    main(["train", *train_flags, *schedule, "--num_train_epochs", "2"])
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    saved = state["stateful_callbacks"]["EpsilonSchedulerCallback"]
    assert len(saved["attributes"]["memory"]["levels"]) == 24 and saved["args"]["schedule_args"] == {"levels": 2}
    for flags, message in (
        (["--schedule", "auto", "--eval_strategy", "no"], "set eval_strategy='epoch'"),
        (["--schedule", "cosine", "--schedule_args", "bend=0.1"], "Its arguments: cosine(start: float = 0.24"),
    ):
        with pytest.raises(SystemExit):
            main(["train", *train_flags, *flags, "--output_dir", str(tmp_path / "other")])
        assert message in capsys.readouterr().err


def test_fine_tuning_settings_and_skipped_images_are_in_report_and_card(train_flags, imagefolder, tmp_path):
    (Path(imagefolder) / "train" / "red" / "broken.png").write_bytes(b"no image")
    settings = ["--freeze", "1", "--ema_decay", "0.9", "--layer_decay", "0.5", "--head_learning_rate", "none"]
    main(["train", *train_flags, "--num_train_epochs", "1", "--skip_bad_images", *settings])
    report = RobustnessReport.from_json(tmp_path / "run" / "robustness_report.json")
    training = report.metadata["training"]
    assert (training["freeze"], training["ema_decay"], training["layer_decay"]) == ("1", 0.9, 0.5)
    assert "head_learning_rate" not in training and training["adam_beta2"] == 0.95
    (skipped,) = report.metadata["skipped_images"]["train"]
    assert skipped["file"] == "broken.png" and str(tmp_path) not in json.dumps(dict(report.metadata))
    card = (tmp_path / "run" / "README.md").read_text()
    for part in (
        "## Data", "24 images in train, 8 images in validation, 16 images in test", "Left out, because they cannot be",
        "horizontal flip with probability 0.5", "| freeze | 1 |", "average over training steps",
        "Recipes: paper_default.",
    ):  # fmt: skip
        assert part in card, part


def test_a_dry_run_tells_what_would_be_done_and_does_none_of_it(train_flags, tmp_path, capsys):
    main(["train", *train_flags, "--dry-run", "--bf16", "--gpu", "a100", "--plan_json", str(tmp_path / "plan.json")])
    printed = capsys.readouterr().out
    for part in ("train 24, validation 8, test 16", "4 epochs of 3 steps", "NVIDIA A100, bf16, peak 312 TFLOPS"):
        assert part in printed, part
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["configuration"]["head_learning_rate"] == 0.004 and plan["gpu_hours"] > 0
    assert not (tmp_path / "run").exists() and str(tmp_path) not in printed


def test_the_output_folder_tells_the_run(train_flags, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = train_flags.index("--output_dir")
    main(["train", *train_flags[:where], *train_flags[where + 2 :], "--seed", "3", "--dry-run"])
    assert "runs/pretrained-colours-Linf-8_255-hinge-seed3" in capsys.readouterr().out


def test_what_a_search_finds_is_a_recipe_for_train(train_flags, tmp_path, capsys):
    found = tmp_path / "new" / "found.yaml"
    flags = [*train_flags, "--num_train_epochs", "1", "--trials", "2", "--pruner", "none", "--recipe", str(found)]
    main(["search", *flags])
    printed = capsys.readouterr().out
    assert f"Reuse: hf-robust-ft train --config paper_default --config {found} ..." in printed
    assert "best of 2 trials" in printed and not (tmp_path / "run" / "model.safetensors").exists()
    main(["train", "--config", "paper_default", "--config", str(found), *train_flags, "--dry-run"])
    assert "From recipe paper_default + found" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["search", *flags])
    assert "found.yaml exists. Name another file with --recipe" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["search", *flags[:-1], str(tmp_path / "new.yaml"), "--learning_rates", "0.1"])
    assert "The range of learning_rate must be two increasing positive numbers, got (0.1,)" in capsys.readouterr().err


def test_no_token_or_folder_of_this_machine_is_published(train_flags, tmp_path):
    main(["train", *train_flags, "--hub_token", "hf_SECRET", "--hub-token=hf_SECRET", f"--output_dir={tmp_path}/run"])
    for name in ("README.md", "robustness_report.json"):
        text = (tmp_path / "run" / name).read_text()
        assert "SECRET" not in text and str(tmp_path) not in text
    assert "hf-robust-ft train --model pretrained" in (tmp_path / "run" / "README.md").read_text()


def test_evaluate_measures_what_it_is_told_to(train_flags, imagefolder, tmp_path, capsys):
    main(["train", *train_flags])
    flags = [
        "evaluate",
        "--model",
        str(tmp_path / "run"),
        "--dataset",
        imagefolder,
        "--eps",
        "1/255",
        "--device",
        "cpu",
    ]
    out = tmp_path / "few"
    main([*flags, "--split", "train", "--max_eval_samples", "5", "--output_dir", str(out)])
    assert RobustnessReport.from_json(out / "robustness_report.json").num_samples == 5
    assert "was trained on other splits of colours (validation_size 0.25 -> 0.1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*flags[:-1], "gpu"])
    assert "error" in capsys.readouterr().err


def test_a_weight_file_is_measured_as_the_checkpoint_it_came_from(imagefolder, tmp_path):
    labels = {"id2label": dict(enumerate(["blue", "green", "red", "yellow"])), "num_labels": 4}
    model, processor = build_timm_classifier("test_resnet", labels, image_size=32)
    model.save_pretrained(tmp_path / "folder")
    processor.save_pretrained(tmp_path / "folder")
    save_file(model.timm_model.state_dict(), tmp_path / "weights.safetensors")
    flags = ["--dataset", imagefolder, "--eps", "2/255", "--device", "cpu", "--attack_steps", "2"]
    of_file = ["--architecture", "timm/test_resnet", "--image_size", "32"]
    reports = []
    for name, more in (("folder", []), ("weights.safetensors", of_file)):
        main(["evaluate", "--model", str(tmp_path / name), *more, *flags, "--output_dir", str(tmp_path / f"of_{name}")])
        reports.append(RobustnessReport.from_json(tmp_path / f"of_{name}" / "robustness_report.json"))
    assert reports[0].accuracies == reports[1].accuracies
    assert reports[0].per_class == reports[1].per_class


def test_evaluating_a_checkpoint_of_another_dataset_is_refused(checkpoint, imagefolder, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", checkpoint, "--dataset", imagefolder])
    assert "tells 9 classes apart, the dataset has 4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", checkpoint, "--dataset", imagefolder, "--split", "dev"])
    assert "Unknown split 'dev'. Valid: train, validation, test" in capsys.readouterr().err


def test_missing_required_arguments_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--eps", "4/255"])
    assert "--model" in capsys.readouterr().err


def test_program_help_is_quick_and_names_the_commands():
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "hf_robust_ft", "--help"],
                          capture_output=True, text=True, env={**os.environ})  # fmt: skip
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("quickstart", "train", "search", "evaluate"))
    assert "| torch" not in done.stderr and "transformers" not in done.stderr


def test_unknown_command_lists_the_valid_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit"])
    commands = (
        "train, search, diagnose, calibrate, reproduce, evaluate, verify, report, leaderboard, publish, "
        "publish-metric, quickstart"
    )
    assert f"Commands: {commands}" in str(stop.value.code)


@pytest.fixture
def evaluate_flags(make_model, processor, imagefolder, tmp_path):
    """For a checkpoint that knows the four colours."""
    model, folder = make_model("resnet"), tmp_path / "colours_model"
    names = ["blue", "green", "red", "yellow"]
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return [
        "evaluate", "--model", str(folder), "--dataset", imagefolder, "--split", "train", "--max_eval_samples", "20",
        "--eps", "2/255", "--attack_steps", "3", "--batch_size", "8", "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    """The numbers of the batches that were attacked."""
    numbers, original = [], evaluation_work.EvaluationWork.measure_batch

    def spy(self, number, *args):
        numbers.append(number)
        return original(self, number, *args)

    monkeypatch.setattr(evaluation_work.EvaluationWork, "measure_batch", spy)
    return numbers


def test_evaluate_writes_all_it_found_and_reuses_it(evaluate_flags, tmp_path, capsys, measured, rendered_pictures):
    out = tmp_path / "out"
    flags = [*evaluate_flags, "--protocol", "exact", "--eps_distributions", "beta:2,5", "dirac:1/255"]
    flags += ["--save_examples", "2", "--output_dir", str(out)]
    main(flags)
    printed = capsys.readouterr().out
    assert measured == [0, 1, 2]
    report = RobustnessReport.from_json(out / "robustness_report.json")
    assert report.protocol == "exact" and report.num_samples == 20 and list(report.distributions) == [
        "beta:2,5", "dirac:1/255",
    ]  # fmt: skip
    assert report.distributions["dirac:1/255"] == pytest.approx(report.accuracies[1])
    assert {row["class"] for row in report.per_class} <= {"blue", "green", "red", "yellow"}
    assert str(report) in printed and report.class_table() in printed
    assert "Can these numbers be trusted?" in printed and report.check_lines() in printed
    card = (out / "README.md").read_text()
    assert "Protocol *exact*" in card and "for eps ~ beta:2,5" in card and "## By class" in card
    assert "## Can these numbers be trusted?" in card and str(tmp_path) not in card
    strips = sorted((out / "examples").glob("*.png"))
    assert [path.name for path in strips] == ["example_000.png", "example_001.png"]
    assert all(Image.open(path).size == (1080, 405) for path in strips)

    results = list(out.glob("finished_batches/evaluation-*/batch-*.json"))
    assert results
    before = {path: path.read_bytes() for path in (*results, out / "robustness_report.json", out / "README.md")}
    main(flags)
    assert measured == [0, 1, 2]
    assert {path: path.read_bytes() for path in before} == before
    assert capsys.readouterr().out == printed


def test_trust_checks_and_output_can_be_left_out(evaluate_flags, tmp_path, capsys):
    main([*evaluate_flags, "--trust_checks", "false", "--output_dir", str(tmp_path / "out")])
    assert "trusted" not in capsys.readouterr().out + (tmp_path / "out" / "README.md").read_text()
    assert RobustnessReport.from_json(tmp_path / "out" / "robustness_report.json").checks == []
    before = sorted(tmp_path.rglob("*"))
    main(evaluate_flags)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "budget", "attack"),
    [
        (["--norm", "L2", "--eps", "0.5"], {"norm": "L2", "eps": 0.5}, "ce"),
        (["--norm", "L1", "--eps", "4"], {"norm": "L1", "eps": 4.0}, "ce"),
        (["--attack_loss", "dlr_targeted"], {"norm": "Linf", "eps": 2 / 255}, "dlr_targeted"),
        (["--attack_loss", "dlr", "--protocol", "exact"], {"norm": "Linf", "eps": 2 / 255}, "dlr"),
    ],
    ids=["L2", "L1", "dlr_targeted", "dlr"],
)
def test_other_norms_and_losses(evaluate_flags, tmp_path, capsys, changes, budget, attack):
    main([*evaluate_flags, *changes, "--output_dir", str(tmp_path / "out")])
    report = RobustnessReport.from_json(tmp_path / "out" / "robustness_report.json")
    assert report.threat_model == budget and report.attack["loss"] == attack
    assert report.epsilons[0] == 0 and report.epsilons[-1] == budget["eps"] and len(report.epsilons) >= 3
    assert f"at {budget['norm']} " in capsys.readouterr().out
    assert f"APGD-{attack.upper().replace('_', '-')}-3" in (tmp_path / "out" / "README.md").read_text()


def test_autoattack_is_printed_and_in_the_card(evaluate_flags, tmp_path, capsys, monkeypatch):
    def fools_none(logits_fn, pixels, labels, threat_model, *, seed):
        return AttackResult(pixels, labels < 0, labels.float(), labels)

    monkeypatch.setattr(evaluation_work, "autoattack", fools_none)
    main([*evaluate_flags, "--autoattack", "19", "--eps", "0.001", "--output_dir", str(tmp_path / "out")])
    report = RobustnessReport.from_json(tmp_path / "out" / "robustness_report.json")
    standing = sum(report.smallest_epsilons[index] is None for index in report.autoattack_images) / 19
    assert standing > 0 and report.autoattack_accuracy == standing and report.autoattack_samples == 19
    low, high = report.confidence_intervals["autoattack_accuracy"]
    assert low < standing < high
    line = (
        f"autoattack accuracy    {standing:7.2%}   [{low:.1%}, {high:.1%}]   at Linf 0.001, 19 images drawn at random"
    )
    assert line in capsys.readouterr().out
    assert "autoattack_accuracy" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--save_examples", "2"], "save_examples needs an output_dir"),
        (["--save_examples", "-1"], "save_examples is a number of images, got -1"),
        (["--autoattack", "-1"], "autoattack is a number of images, got -1"),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--protocol", "fast"], "Unknown protocol 'fast'. Valid protocols: paper, exact, reliable."),
        (["--attack_loss", "cw"], "Valid losses: ce, dlr, dlr_targeted"),
        (["--norm", "L0"], "Valid norms: Linf, L2, L1"),
        (["--eps_distributions", "beta:2"], "'beta:2' is no distribution of eps with its parameters"),
        (["--epsilons", "0", "1/255"], "must end at the threat model's eps (2/255)"),
    ],
    ids=lambda value: "_".join(value).strip("-").replace("/", "_") if isinstance(value, list) else "",
)
def test_bad_evaluation_options_are_one_line(evaluate_flags, capsys, measured, changes, message):
    with pytest.raises(SystemExit) as stop:
        main([*evaluate_flags, *changes])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and "Traceback" not in error and measured == []


def test_a_model_that_the_hub_lacks_is_one_line(evaluate_flags, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint_source, "ask_hub", lambda *_: HubAnswer.ABSENT)
    with pytest.raises(SystemExit) as stop:
        main([*evaluate_flags, "--model", "nobody/nothing"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("hf-robust-ft evaluate: error: There is no file or folder nobody")
    assert "nobody/nothing is not a valid model identifier of the Hub" in error


def test_the_version_is_the_codes(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"hf-robust-ft {hf_robust_ft.__version__}\n"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda: int("eight"), True),
        (lambda: {}["nothing"], True),
        (lambda: Path("/no/such/file").read_text(), False),
        (lambda: hf_robust_ft.ThreatModel("Linf", "4"), False),
    ],
    ids=["failed", "unforeseen", "system", "refused"],
)
def test_a_traceback_is_offered_where_nobody_worded_the_error(monkeypatch, capsys, fault, told):
    monkeypatch.setitem(cli.COMMANDS, "evaluate", lambda argv: fault())
    with pytest.raises(SystemExit) as stop:
        main(["evaluate"])
    assert stop.value.code == 2 and ("HF_ROBUST_FT_TRACEBACK" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (["train", "--model", "swin"], "hf-robust-ft train --model swin --resume_from_checkpoint auto"),
        (["evaluate", "--model", "runs/a"], "hf-robust-ft evaluate --model runs/a"),
    ],
)
def test_ctrl_c_is_one_line_that_says_how_to_go_on(monkeypatch, capsys, words, again):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, words[0], interrupted)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 130
    assert capsys.readouterr().err.strip() == f"hf-robust-ft {words[0]}: stopped by Ctrl-C. Go on: {again}"


def test_help_comes_in_the_order_of_what_matters(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    text = capsys.readouterr().out
    order = ["--norm ", "--eps ", "--eps_schedule ", "--attack_steps ", "--head_learning_rate ", "--learning_rate "]
    places = [text.index(f"\n  {option}") for option in order]
    assert places == sorted(places)
    text = " ".join(text.split())
    assert "--no_ema_warmup Switch --ema_warmup off. --ema_use" in text
    assert "--push_to_hub Once measured, publish checkpoint, report, pictures and card" in text
    assert "--resume_from_checkpoint CHECKPOINT Go on from a checkpoint: its folder, 'last'" in text


def test_evaluate_offers_nothing_of_training(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help-all"])
    text = capsys.readouterr().out
    assert "--no_trust_checks" in text
    assert not [word for word in ("stream", "shuffle", "paper_default", "Shipped") if word in text]


def test_a_model_below_the_bar_is_called_so_in_the_last_lines(evaluate_flags, tmp_path, capsys):
    main([*evaluate_flags, "--eps", "64/255", "--output_dir", str(tmp_path / "out")])
    *_, before, last = capsys.readouterr().out.splitlines()
    assert before.startswith("Not robust at Linf 64/255: ") and last.startswith("Reliability: ")
    assert "**Not robust at Linf 64/255**" in (tmp_path / "out" / "README.md").read_text()
