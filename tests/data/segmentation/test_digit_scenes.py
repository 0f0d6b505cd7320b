import numpy as np

from hf_robust_ft.data.segmentation import digit_scenes


def test_the_embedded_scenes_have_masks_of_eleven_classes_in_three_splits(scenes):
    assert {name: len(split) for name, split in scenes.items()} == digit_scenes.SCENES
    assert scenes.class_names == ["background", *map(str, range(10))]
    pair = scenes["test"][0]
    assert pair["image"].mode == "RGB" and pair["mask"].mode == "L" and pair["image"].size == pair["mask"].size
    labels = np.stack([np.asarray(mask) for mask in scenes["validation"]["mask"]])
    assert set(np.unique(labels)) == set(range(11)) and 0.8 < (labels == 0).mean() < 0.95


def test_digits_stand_out_from_their_canvas(scenes):
    for pair in scenes["test"].select(range(20)):
        image, mask = np.asarray(pair["image"]).astype(float) / 255, np.asarray(pair["mask"])
        digits = [label for label in np.unique(mask) if label]
        assert digits
        around = image[mask == 0].mean(0)
        assert all(np.abs(image[mask == label].mean(0) - around).mean() > 0.15 for label in digits)


def test_scenes_are_the_same_for_the_same_seed_and_others_for_another(monkeypatch):
    monkeypatch.setattr(digit_scenes, "SCENES", {"train": 3, "validation": 1, "test": 1})
    first, again, other = (digit_scenes.load_digit_scenes(seed)["train"]["mask"] for seed in (0, 0, 1))
    assert [np.asarray(mask).tolist() for mask in first] == [np.asarray(mask).tolist() for mask in again]
    assert not np.array_equal(np.asarray(first[0]), np.asarray(other[0]))


def test_no_digit_is_in_scenes_of_two_splits(monkeypatch):
    monkeypatch.setattr(digit_scenes, "SCENES", {"train": 1, "validation": 1, "test": 1})
    monkeypatch.setattr(digit_scenes, "_scene", lambda inks, labels, part, rng: set(part))
    train, validation, test = (scenes[0] for scenes in digit_scenes.compose_splits().values())
    assert not (train & validation or train & test or validation & test)
    assert len(train | validation | test) == 1797
