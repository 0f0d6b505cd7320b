"""Loading is measured by the road that training takes, and set beside a step's images a second."""

import json
import sys

import pytest
from PIL import Image

from hf_robust_ft.benchmarks import data_loading


@pytest.fixture
def photos(tmp_path):
    """Three photographs in folders of classes."""
    for number in range(3):
        file = tmp_path / "photos" / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.radial_gradient("L").rotate(30 * number).convert("RGB").save(file)
    return tmp_path / "photos"


def test_the_table_has_the_parts_of_the_transform_and_the_workers_of_a_step(photos, tmp_path, monkeypatch, capsys):
    output = tmp_path / "loading.json"
    argv = f"data_loading --images {photos} --count 12 --rounds 1 --no-cpu-step --output {output}"
    monkeypatch.setattr(sys, "argv", argv.split())
    data_loading.main()
    report = json.loads(output.read_text())
    jpeg, digits = report["sources"].values()
    assert set(jpeg["images a second"]) == {*digits["images a second"], "JPEG to tensor, v2"}
    assert min(jpeg["images a second"].values()) > 0
    # The processor resizes by torchvision v2 on tensors: the way over tensors shows the same pixels.
    assert jpeg["largest difference over tensors (255ths)"] < 0.5
    # 7 input gradients (2 forwards each) and a forward more than a training pass, of 3.
    assert report["gpu"]["eps = 0"] / report["gpu"]["APGD-7"] == pytest.approx(6, rel=0.05)
    assert "H100" in (table := capsys.readouterr().out) and "workers" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--utilisation", "30"], "--utilisation is a share in (0, 1], got 30.0"), (["--count", "0"], "at least 1")],
)
def test_what_cannot_be_measured_is_refused(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["data_loading", *options])
    with pytest.raises(SystemExit):
        data_loading.main()
    assert message in capsys.readouterr().err


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no image"), data_loading.photographs(tmp_path, (8, 8), 2):
        pass
