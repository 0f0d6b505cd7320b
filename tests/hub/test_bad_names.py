"""Names in a checkpoint's own files lead nowhere: what is published lies in its folder."""

import json
import shutil

import pytest
from finished_run import write_run

from hf_robust_ft.cli.main import main
from hf_robust_ft.hub import publish


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished, tmp_path):
    (tmp_path / "private.safetensors").write_bytes(b"not for others")
    (tmp_path / "private.py").write_text("PASSWORD = 1")
    return shutil.copytree(finished, tmp_path / "run")


def shards(*names):
    def damage(run):
        (run / "model.safetensors").rename(run / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": {f"weight{at}": name for at, name in enumerate(names)}}
        (run / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def code(name):
    def damage(run):
        config = json.loads((run / "config.json").read_text()) | {"auto_map": {"AutoConfig": name}}
        (run / "config.json").write_text(json.dumps(config))

    return damage


def no_mapping(run):
    shards()(run)
    (run / "model.safetensors.index.json").write_text(json.dumps({"weight_map": "model.safetensors"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shards("../private.safetensors"), "names '../private.safetensors', which is no file beside it"),
        (shards("/etc/passwd", "model-00001-of-00001.safetensors"), "names '/etc/passwd', which is no file beside it"),
        (shards("a\0b"), r"names 'a\\x00b', which is no file beside it"),
        (shards("..\\private.safetensors"), "which is no file beside it"),
        (no_mapping, "names 'model.safetensors', which is no file beside it"),
        (code("../private.OwnConfig"), "names '../private.py', which is no file beside it"),
        (code("/tmp/private.OwnConfig"), "names '/tmp/private.py', which is no file beside it"),
    ],
)  # fmt: skip
def test_a_name_that_is_a_path_is_refused(run, damage, message):
    damage(run)
    before = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")}
    with pytest.raises(ValueError, match=message) as refused:
        publish(run, "tester/robust")
    assert "\n" not in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["afile", "tester/x"], "There is no folder afile"),
        (["run", "tester/x y"], "'tester/x y' is no repository id"),
        (["run", "../x"], "'../x' is no repository id"),
        (["run", "tester/x", "--report", "afile"], "There is no robustness_report.json in afile"),
        (["run", "tester/x", "--revision", " "], "revision=' ' names no branch"),
        (["run", "tester/x", "--pr", "--revision", "next"], "not both"),
        (["run", "tester/x", "--licence", "mit"], "unrecognized arguments: --licence mit"),
        (["damaged", "tester/x"], "The checkpoint in .*damaged does not load|belongs to other weights"),
    ],
    ids=lambda value: "_".join(value)[:40] if isinstance(value, list) else "",
)
def test_on_the_command_line(run, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("x")
    shutil.copytree(run, tmp_path / "damaged")
    weights = (run / "model.safetensors").read_bytes()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["publish", *words])
    (error,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and error.startswith("hf-robust-ft publish: error: ")
    assert any(part in error.replace(str(tmp_path), ".*") for part in told.split("|")), error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
