"""`hf-robust-ft train` with RoLI: both phases in one command, which may be killed at any moment."""

import json
import os
import signal
from pathlib import Path

import pytest
from conftest import assert_same_weights
from forked import LIBRARIES_AND_OURS
from safetensors.torch import load_file

from hf_robust_ft.cli.main import main
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.hub.contents import published_files
from hf_robust_ft.reporting.model_card import render_model_card
from hf_robust_ft.training.probed_head import ProbedHead

PROBE = ["--probe_epochs", "2", "--probe_learning_rate", "0.5", "--probe_optim_args", "momentum=0.9"]

# Dies at a moment of the run, as a machine does.
SCRIPT = """
import os, signal
from hf_robust_ft.cli.main import main
from hf_robust_ft.training.probed_head import ProbedHead
from hf_robust_ft.training.trainer import AdversarialTrainer

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

save = AdversarialTrainer._save_checkpoint

def save_and_die(self, *args, **kwargs):
    save(self, *args, **kwargs)
    if (self.args.freeze == "backbone") == (moment == "saved in phase 1"):
        die()

moment = {moment!r}
if moment == "before the head is written":
    ProbedHead.write = die
elif moment == "after the head is written":
    ProbedHead.load_into = die
elif moment:
    AdversarialTrainer._save_checkpoint = save_and_die
main({flags!r})
"""


@pytest.fixture
def train_flags(checkpoint, imagefolder, tmp_path):
    return [
        "train", "--model", checkpoint, "--dataset", imagefolder, "--output_dir", str(tmp_path / "run"),
        "--eps", "8/255", "--num_train_epochs", "2", "--per_device_train_batch_size", "8", "--validation_size", "0.25",
        "--attack_steps", "1", "--attack_random_start", "--eval_attack_steps", "1", "--schedule", "linear_warmup",
        "--schedule_granularity", "step", "--use_cpu", "--disable_tqdm", "true", *PROBE,
    ]  # fmt: skip


def run(flags, folder, moment=None):
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT.format(moment=moment, flags=flags))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return LIBRARIES_AND_OURS.run(script, [environment], folder, timeout=120)


def test_a_run_killed_in_either_phase_or_between_comes_to_the_same_end(train_flags, tmp_path):
    ends = {}
    for number, moment in enumerate(
        (None, "saved in phase 1", "before the head is written", "after the head is written", "saved in phase 2")
    ):
        output = tmp_path / f"run {number}"
        flags = [*train_flags, "--output_dir", str(output), "--resume_from_checkpoint", "auto", "--robust_eval", "no"]
        done = run(flags, tmp_path / f"first {number}", moment)
        assert done.returncode == (0 if moment is None else -signal.SIGKILL), (moment, done.stderr)
        head = output / "probe" / "head.safetensors"
        assert head.exists() == (moment not in ("saved in phase 1", "before the head is written"))
        written = head.stat().st_mtime_ns if head.exists() else None
        if moment is not None:
            assert not (output / "model.safetensors").exists()
            again = run(flags, tmp_path / f"again {number}")
            assert again.returncode == 0, (moment, again.stderr)
        assert written is None or head.stat().st_mtime_ns == written  # phase 1 is not done twice
        facts = ProbedHead.in_folder(output / "probe").facts
        ends[moment] = load_file(output / "model.safetensors") | load_file(head), facts
    weights, facts = ends[None]
    for moment, (own, own_facts) in ends.items():
        assert_same_weights(own, weights)
        assert own_facts == facts, moment


def test_what_a_run_with_a_probe_leaves_and_says(train_flags, tmp_path, capsys):
    main(train_flags)
    output = tmp_path / "run"
    assert "Training starts from the head in" in capsys.readouterr().out
    assert not any("probe" in name for name in published_files(output))
    report = RobustnessReport.from_json(output / "robustness_report.json")
    assert report.metadata["training"]["probe_epochs"] == 2 and report.metadata["probe"]["validation_images"] == 8
    card = (output / "README.md").read_text()
    assert "The head was first trained alone under attack (RoLI), for 2 epochs; training started" in card
    assert card == render_model_card(report, [line[2:-1].split("](")[0] for line in card.splitlines() if "![" in line])
    assert "probe_epochs: 2.0" in (output / "recipe.yaml").read_text()
    for flags, message in (
        ([], "run holds the results of an earlier run"),
        (["--resume_from_checkpoint", str(output / "probe" / "checkpoint-6")], "is of the probe"),
        (
            ["--resume_from_checkpoint", "last", "--probe_epochs", "3"],
            "other settings: probe_epochs 2.0 there, 3.0 now",
        ),
    ):
        with pytest.raises(SystemExit):
            main([*train_flags, *flags])
        assert message in capsys.readouterr().err


def test_a_probe_of_an_earlier_run_is_neither_overwritten_nor_taken_unasked(train_flags, tmp_path, capsys):
    probe = tmp_path / "run" / "probe"
    assert run(train_flags, tmp_path / "killed", "after the head is written").returncode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in probe.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        main(train_flags)
    assert "probe holds the probe of an earlier run. Continue it with --resume_from_checkpoint last" in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main([*train_flags, "--resume_from_checkpoint", "last", "--probe_learning_rate", "0.1"])
    assert "probe was trained with other settings: learning_rate" in capsys.readouterr().err
    main([*train_flags, "--resume_from_checkpoint", "last"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "run" / "model.safetensors").exists()
    Path(tmp_path / "run" / "model.safetensors").write_text("mine")
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        os.rename(checkpoint, tmp_path / checkpoint.name)
    with pytest.raises(SystemExit):
        main([*train_flags, "--resume_from_checkpoint", "last"])
    assert "holds the results of an earlier run (model.safetensors" in capsys.readouterr().err


def test_a_stream_has_no_epochs_to_probe_for(train_flags, capsys):
    with pytest.raises(SystemExit):
        main([*train_flags, "--streaming", "--max_steps", "2"])
    assert "A stream has no epochs to probe for: leave probe_epochs out" in capsys.readouterr().err


def test_a_dry_run_counts_both_phases(train_flags, tmp_path, capsys):
    main([*train_flags, "--dry-run", "--plan_json", str(tmp_path / "plan.json")])
    plan = json.loads((tmp_path / "plan.json").read_text())
    phases = {phase["name"]: phase for phase in plan["phases"]}
    assert phases["probe: training"]["training"] == 2 * 24 and phases["training"]["training"] == 2 * 24
    attack = phases["probe: attack in training (eps > 0 in 6 of 6 steps)"]
    assert (attack["input_gradient"], attack["forward"]) == (48, 48)
    assert phases["probe: validation"]["forward"] == 2 * 8 and phases["probe: attack in validation (1 budgets)"]
    assert not any("test" in name or "trust" in name for name in phases if name.startswith("probe"))
    per_image = plan["probe_flops_per_image"]["training"]
    assert per_image < plan["flops_per_image"]["training"] / 2
    assert phases["probe: training"]["flops"] == 48 * per_image
    assert plan["flops"] == sum(phase["flops"] for phase in plan["phases"])
    assert "probe: training" in capsys.readouterr().out and not (tmp_path / "run").exists()
