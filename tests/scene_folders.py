"""Scenes as a folder of images and masks, as a user has them."""

import json

import numpy as np
from PIL import Image as PILImage

COLOURS = np.array([[30, 30, 30], [220, 40, 40], [40, 40, 220]], dtype=np.uint8)
SIDE = 32


def write_scenes(root, count):
    """Squares whose colour says their class."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        for label, top in ((1, 2), (2, 18)):
            left = rng.integers(0, 16)
            mask[top : top + 12, left : left + 12] = label
        noise = rng.integers(-20, 20, (SIDE, SIDE, 3))
        image = (COLOURS[mask].astype(int) + noise).clip(0, 255).astype(np.uint8)
        mask[0, 0] = 255
        PILImage.fromarray(image).save(root / "images" / f"{index}.png")
        PILImage.fromarray(mask).save(root / "masks" / f"{index}.png")
    (root / "id2label.json").write_text(json.dumps({"0": "ground", "1": "red", "2": "blue"}))
