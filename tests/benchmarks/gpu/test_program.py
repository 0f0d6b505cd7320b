"""The program on the CPU with tiny models, by the road a user takes."""

import json
import os
import re

import pytest
import torch
from forked import LIBRARIES_AND_OURS

from hf_robust_ft.benchmarks.gpu import synchronisation, train_step
from hf_robust_ft.benchmarks.gpu.__main__ import main
from hf_robust_ft.benchmarks.gpu.cases import Setup
from hf_robust_ft.benchmarks.gpu.models import ARCHITECTURES, build_model
from hf_robust_ft.benchmarks.gpu.sections import SECTIONS
from hf_robust_ft.benchmarks.gpu.synchronisation import HostReads

PARAMETERS = {"ViT-B/16": 86.6e6, "Swin-B": 87.8e6, "ConvNeXt-B": 88.6e6, "ResNet-50": 25.6e6}


UNCOMPILED = [name for name in SECTIONS if name != "recompilation"]
FLAGS = "--device cpu --small --models ResNet-50 --rounds 1 --steps 1 --batch-size 2"


# The sections fork, which a process that has run a backward pass of its own cannot do: it is one of its own here, too.
PROGRAM = """
import sys
from hf_robust_ft.benchmarks.gpu import train_step
from hf_robust_ft.benchmarks.gpu.__main__ import main
variants = train_step.variants
if {uncompiled}:
    train_step.variants = lambda *args: (each for each in variants(*args) if each.compiled is None)
main({flags}.split())
"""


def rows_of(folder, sections, minutes, uncompiled):
    path, script = folder / "out.json", folder / "program.py"
    flags = f"{FLAGS} --minutes {minutes} --json {path} --sections {' '.join(sections)}"
    script.write_text(PROGRAM.format(uncompiled=uncompiled, flags=repr(flags)))
    done = LIBRARIES_AND_OURS.run(script, [dict(os.environ)], folder, timeout=60 * minutes + 60)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())["rows"], path


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The rows of one model, but for what compiles; and the file they are in."""
    return rows_of(tmp_path_factory.mktemp("gpu"), UNCOMPILED, minutes=3, uncompiled=True)


def test_every_section_reports_without_an_error(report):
    rows = report[0]
    assert {row["section"] for row in rows} == set(UNCOMPILED)
    assert [row for row in rows if "error" in row] == []
    assert all(row["figures"] and row["model"] == "ResNet-50" for row in rows)


@pytest.mark.slow
def test_what_compiles_reports_without_an_error(tmp_path):
    rows, _ = rows_of(tmp_path, ["train_step", "recompilation"], minutes=8, uncompiled=False)
    assert [row for row in rows if "error" in row] == [] and rows[-2]["setting"].endswith("traced")
    assert rows[-1]["figures"]["after the first attacked step"] == 0


def test_the_figures_are_those_of_the_section(report):
    def found(section, word=""):
        return [row["figures"] for row in report[0] if row["section"] == section and word in row["setting"]]

    assert all({"ours / bare passes", "AutoAttack / bare passes"} <= each.keys() for each in found("attack"))
    assert len(found("train_step")) == 3 and len(found("train_step", "contiguous")) == 1
    assert all(each["images / s"] > 0 and each["TFLOPS"] > 0 for each in found("train_step"))
    assert all(each["values read"] == 0 and each["attacked steps"] > 0 for each in found("synchronisation"))
    fp32, bf16 = found("strength")
    assert fp32["accuracy under attack"] == fp32["the same images in fp32"] and fp32["eps"] == bf16["eps"]


def test_the_report_renders_to_one_table(report, capsys):
    main(["--render", str(report[1])])
    head, _, *table = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("CPU, torch") and "tiny models" in head
    assert len(table) == 2 + len(report[0]) and all(line.count(" | ") == 3 for line in table[2:])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_models_are_those_they_are_named_after(name):
    model = build_model(name, small=False, device="meta")
    assert sum(each.numel() for each in model.parameters()) == pytest.approx(PARAMETERS[name], rel=0.01)


def test_a_wait_for_the_device_would_be_counted():
    with HostReads() as reads:
        torch.ones(3).sum().item()
    assert reads.found == ["_local_scalar_dense"]


def test_schedules_without_memory_are_watched():
    setup = Setup("cpu", True, ("ViT-B/16",), 2, 1, 1)
    settings = {case.setting for case in synchronisation.cases(setup)}
    assert settings == {"schedule: constant", "schedule: sampled", "schedule: steps grow"}


def test_on_cuda_each_precision_and_compilation_has_its_row():
    setup = Setup("cuda", True, ("ViT-B/16", "ResNet-50"), 2, 1, 1)
    names = {model: [each.setting for each in train_step.cases(setup) if each.model == model] for model in setup.models}
    assert names["ResNet-50"] == [
        "bf16, channels_last", "tf32, channels_last", "fp32, channels_last", "bf16, contiguous",
        "bf16, channels_last, compiled", "bf16, channels_last, compiled, CUDA graphs",
    ]  # fmt: skip
    assert len(names["ViT-B/16"]) == 5


@pytest.mark.parametrize(
    ("name", "found"),
    [("NVIDIA A100-SXM4-80GB", "NVIDIA A100"), ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
     ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM"), ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090"),
     ("Tesla T4", "NVIDIA T4")],
)  # fmt: skip
def test_a_card_is_known_by_the_name_that_cuda_gives_it(name, found):
    assert train_step.card_of(name).name == found


def test_a_card_without_a_known_peak_is_named_beside_what_was_measured():
    setup = Setup("cpu", True, ("ResNet-50",), 2, 1, 1)
    figures = train_step.rates(setup, "ResNet-50", "bf16", seconds=0.5)
    assert figures["images / s"] == 4 and figures["share of the card's peak"] == "not known for CPU"
    with pytest.raises(ValueError, match="not known for NVIDIA A10G"):
        train_step.card_of("NVIDIA A10G")


@pytest.mark.parametrize(
    ("flags", "told"),
    [("--minutes 0", "--minutes must be above 0"), ("--render none.json", "there is no such file"),
     ("--sections speed", "invalid choice: 'speed'")],
)  # fmt: skip
def test_bad_flags_are_named(flags, told, capsys):
    with pytest.raises(SystemExit):
        main(flags.split())
    assert re.search(re.escape(told), capsys.readouterr().err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_cuda_device_the_dry_run_is_proposed(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--device cpu --small" in capsys.readouterr().err
