import base64
from io import BytesIO

import numpy as np
import pytest
import torch
from colour_classifier import ColourClassifier
from PIL import Image

from hf_robust_ft import APGD, PixelClassifier, PixelSpace, ThreatModel
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.reporting import choose_examples, save_examples
from hf_robust_ft.reporting.example_pairs import ExamplePairs
from hf_robust_ft.reporting.examples import _half_and_half, _plot_strip
from hf_robust_ft.reporting.page.render import _examples_of

pytestmark = pytest.mark.usefixtures("rendered_pictures")
NAMES = ["red", "green", "blue", "yellow"]


@pytest.fixture
def classifier(processor):
    return PixelClassifier(ColourClassifier(), PixelSpace.from_processor(processor))


@pytest.fixture
def batch(dataset, processor):
    found = stack_examples(list(dataset)[:5])
    return PixelSpace.from_processor(processor).to_pixels(found["pixel_values"]).clamp(0, 1), found["labels"]


def panels(path) -> list[np.ndarray]:
    """The three pictures of a strip, without titles and margins: (H, W, 3) in [0, 1] each."""
    strip = np.asarray(Image.open(path).convert("RGB"), dtype=float) / 255
    assert strip.shape == (405, 1080, 3)
    thirds = np.split(strip, 3, axis=1)
    return [third[160:340, 90:270] for third in thirds]


def test_a_strip_an_image_in_order(classifier, batch, tmp_path):
    files = save_examples(
        classifier,
        *batch,
        tmp_path / "new" / "folder",
        threat_model=ThreatModel("Linf", "8/255"),
        attack=APGD(steps=5, random_start=False, select="fooled"),
        class_names=NAMES,
    )
    assert [path.name for path in files] == [f"example_{index:03d}.png" for index in range(5)]
    assert sorted((tmp_path / "new" / "folder").glob("*.png")) == files
    for path, pixels in zip(files, batch[0], strict=True):
        clean, adversarial, difference = panels(path)
        assert np.abs(clean.mean((0, 1)) - pixels.mean((1, 2)).numpy()).max() < 0.1  # the image of this number
        assert 0 < np.abs(adversarial - clean).max() <= 8 / 255 + 3 / 255  # 8 bit rounding of both
        # The difference is stretched to all of [0, 1], where the images themselves differ by 8/255.
        assert difference.min() < 0.05 and difference.max() > 0.95


def test_the_batch_size_limits_what_runs_at_once_and_changes_no_strip(classifier, batch, tmp_path):
    sizes = []
    classifier.model.register_forward_hook(lambda module, inputs, logits: sizes.append(len(logits)))
    options = {"threat_model": ThreatModel("Linf", "8/255"), "class_names": NAMES}
    options["attack"] = APGD(steps=3, random_start=False)
    together = save_examples(classifier, *batch, tmp_path / "a", **options)
    assert max(sizes) == 5
    sizes.clear()
    in_turn = save_examples(classifier, *batch, tmp_path / "b", batch_size=2, **options)
    assert max(sizes) == 2
    assert [path.name for path in in_turn] == [path.name for path in together]
    assert [path.read_bytes() for path in in_turn] == [path.read_bytes() for path in together]


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_norms_whose_pixels_differ_unequally_are_visible(classifier, batch, tmp_path, norm):
    (path,) = save_examples(
        classifier,
        batch[0][:1],
        batch[1][:1],
        tmp_path,
        threat_model=ThreatModel(norm, {"L2": 0.5, "L1": 6.0}[norm]),
        attack=APGD(steps=5, random_start=False),
        class_names=NAMES,
    )
    difference = panels(path)[2]
    assert max(abs(difference.min() - 0.5), abs(difference.max() - 0.5)) > 0.3


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_no_difference_is_grey(tmp_path, channels):
    image = torch.rand((channels, 8, 8), generator=torch.Generator().manual_seed(0))
    _plot_strip(image, image.clone(), ("red: right", "Linf 0: stood"), tmp_path / "same.png")
    clean, adversarial, difference = panels(tmp_path / "same.png")
    assert np.array_equal(clean, adversarial) and np.abs(difference - 0.5).max() < 0.01


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_of_many_channels_the_mean_is_drawn_and_all_are_kept_as_numbers(tmp_path, channels):
    pixels, labels = torch.rand((2, channels, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    pixels[0] = torch.linspace(0, 1, channels)[:, None, None]  # whose mean is grey
    options = {"threat_model": ThreatModel("Linf", "8/255"), "attack": APGD(steps=2), "class_names": NAMES}
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 64, 4))
    files = save_examples(model, pixels, labels, tmp_path, **options)
    assert len(files) == 2 and np.abs(panels(files[0])[0] - 0.5).max() < 0.01
    pairs = ExamplePairs.load(tmp_path / "examples.npz")
    assert np.array_equal(pairs.clean, pixels.numpy()) and pairs.adversarial.shape == pixels.shape
    clean, _, difference = _examples_of("a", pairs)["examples"][0]["pictures"]
    picture = Image.open(BytesIO(base64.b64decode(clean["uri"].partition(",")[2])))
    assert picture.size == (8, 8) and picture.mode == "RGB" and difference["caption"] == "largest 8/255"


def test_the_model_keeps_its_mode_and_files_repeat_byte_for_byte(classifier, batch, tmp_path):
    classifier.train()
    options = {"threat_model": ThreatModel("Linf", "8/255"), "class_names": NAMES}
    attack = APGD(steps=2, random_start=False)
    first, second = (
        save_examples(classifier, batch[0][:1], batch[1][:1], tmp_path / name, attack=attack, **options)[0]
        for name in ("a", "b")
    )
    assert classifier.training and all(parameter.grad is None for parameter in classifier.parameters())
    assert first.read_bytes() == second.read_bytes()


def test_examples_were_right_and_some_fell_and_some_stood():
    smallest = [0.0] * 50 + [2 / 255] * 40 + [None] * 10
    candidates, fell = choose_examples(smallest, 4, seed=3)
    assert len(candidates) == len(set(candidates)) == 16 and sum(fell) == 8
    assert all(
        smallest[at] != 0 and (smallest[at] is not None) == down for at, down in zip(candidates, fell, strict=True)
    )
    assert choose_examples(smallest, 4, seed=3) == (candidates, fell) != choose_examples(smallest, 4, seed=4)
    assert choose_examples([0.0, 0.0], 4) == ([], [])
    assert choose_examples([0.0, float("inf"), 0.1], 4) == ([2, 1], [True, False])


def test_strips_are_of_images_that_end_as_the_evaluation_says(classifier, batch, tmp_path):
    pixels, labels = batch
    options = {
        "threat_model": ThreatModel("Linf", "8/255"),
        "attack": APGD(steps=5, random_start=False, select="fooled"),
    }
    right = classifier(pixels).argmax(1) == labels
    fooled = options["attack"](classifier, pixels, labels, options["threat_model"]).fooled
    known = {"class_names": NAMES, **options}
    save_examples(classifier, pixels, labels, tmp_path, **known)  # an earlier one's, which go
    files = save_examples(classifier, pixels, labels, tmp_path, fell=fooled.tolist(), count=2, **known)
    pairs = ExamplePairs.load(tmp_path / "examples.npz")
    assert sorted(tmp_path.glob("*.png")) == files and len(files) == len(pairs.labels) == min(2, int(right.sum()))
    assert (pairs.labels == pairs.clean_predictions).all()
    for (before, after), label, ended in zip(
        pairs.captions(), pairs.labels, pairs.adversarial_predictions, strict=True
    ):
        assert before == f"{label}: right"
        assert after == ("Linf 8/255: stood" if ended == label else f"Linf 8/255: fell, taken for {ended}")
    assert save_examples(classifier, pixels, labels, tmp_path, fell=(~fooled).tolist(), **known) == []
    assert not list(tmp_path.iterdir())


def test_half_of_them_fell_as_far_as_there_are():
    assert _half_and_half([1, 2, 3], [4, 5, 6], 4) == [1, 2, 4, 5]
    assert _half_and_half([1], [4, 5, 6], 4) == [1, 4, 5, 6]
    assert _half_and_half([1, 2, 3, 9], [4], 4) == [1, 2, 3, 4]
    assert _half_and_half([], [4], 4) == [4] and _half_and_half([1, 2, 3], [4, 5], 3) == [1, 2, 4]


def test_an_image_that_was_wrong_already_says_so():
    image = np.zeros((1, 3, 4, 4), dtype=np.float32)
    pairs = ExamplePairs(image, image, np.array(["cat"]), np.array(["dog"]), np.array(["dog"]), "Linf 4/255")
    assert pairs.captions() == [("cat: wrong already, taken for dog", "Linf 4/255: taken for dog")]
