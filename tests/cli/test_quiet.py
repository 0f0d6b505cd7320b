"""A log file of a run holds lines that somebody reads: no bars, no notes of libraries, warnings in a line."""

import logging
import os
import warnings

from forked import LIBRARIES

from hf_robust_ft.cli.quiet import BARS, SILENCED, quiet_libraries
from hf_robust_ft.models.timm_classifier import build_timm_classifier


def test_a_run_into_a_file_leaves_no_bars_and_no_notes_of_libraries(imagefolder, tmp_path):
    model, processor = build_timm_classifier("test_resnet", {"num_labels": 1000}, image_size=32)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    small = (
        "--num_train_epochs 1 --per_device_train_batch_size 8 --eval_attack_steps 1 --validation_size 0.25 --use_cpu"
    )
    flags = ["--model", str(tmp_path / "model"), "--dataset", imagefolder, "--output_dir", str(tmp_path / "run")]
    env = {name: value for name, value in os.environ.items() if name not in BARS}
    done = LIBRARIES.run_module(["hf_robust_ft", "train", *flags, *small.split()], env, tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("\r", "it/s", "%|", "shards", "[transformers]", "UserWarning", ".py:", "REPORT"):
        assert part not in done.stderr, part
    assert "This schedule reaches only" in done.stderr and len(done.stderr.splitlines()) < 8
    assert "'loss'" in done.stdout and "Reliability" in done.stdout


def test_only_what_is_named_is_silenced_and_all_is_as_before_afterwards(caplog, monkeypatch):
    for name in BARS:
        monkeypatch.delenv(name, raising=False)
    name, start = next(iter(SILENCED.items()))
    before = warnings.formatwarning
    with quiet_libraries():
        logging.getLogger(name).warning(start + " for this one")
        logging.getLogger(name).warning("Something to act on")
        assert warnings.formatwarning(UserWarning("two\n  lines"), UserWarning, "a.py", 3) == "warning: two lines\n"
        assert "(a.py:3)" in warnings.formatwarning(FutureWarning("gone soon"), FutureWarning, "a.py", 3)
        assert all(os.environ[name] == "1" for name in BARS)
    assert caplog.messages == ["Something to act on"]
    assert warnings.formatwarning is before and not set(BARS) & set(os.environ)
