"""How many loader workers keep a training step fed: images a second of the transforms beside those of a step.

    python -m hf_robust_ft.benchmarks.data_loading --images PHOTOS --output data_loading.json

Of photographs (JPEG files of one size, made of those in `--images`, a folder of classes) and of the embedded digits, at
224 px with augmentation `paper`: the package's own transform, one thread, in processor seconds, and its parts each by
itself; beside them ways that were considered: JPEG to a uint8 tensor and torchvision v2 on it, and images kept decoded,
whole or at their final size (the augmentation then comes after the resize, so its images are others).

A step on this CPU is measured, fp32, pass by pass. A GPU's images a second are an estimate: its peak rate times
`--utilisation` over the FLOPs of the passes, as `train --dry_run` has it.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, Image
from PIL import Image as PILImage
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_robust_ft.benchmarks.attack_cost import positive
from hf_robust_ft.data import load_image_dataset, with_pixel_values
from hf_robust_ft.data.augmentation import AUGMENTATIONS
from hf_robust_ft.data.images import decode_rgb
from hf_robust_ft.experiments.planning.flops import count_flops
from hf_robust_ft.experiments.planning.gpus import GPUS, get_gpu

SIZE = 224
AUGMENTATION = "paper"
# Of a step on an image, by kind of pass: while eps is 0, and under APGD-7.
STEPS = {"eps = 0": {"training": 1}, "APGD-7": {"training": 1, "input_gradient": 7, "forward": 1}}
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")


@contextmanager
def photographs(folder: Path, size: tuple[int, int], count: int) -> Iterator[Dataset]:
    """So many of a folder's images as JPEG files of one size (width, height), loaded as users load theirs.

    Raises:
        ValueError: there is no image.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PHOTO_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no image ({', '.join(PHOTO_SUFFIXES)}): give a folder of photographs.")
    with tempfile.TemporaryDirectory() as place:
        for number in range(count):
            file = files[number * len(files) // count % len(files)]
            for split in ("train", "test"):
                target = Path(place) / split / f"class{number % 2}" / f"{number}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                PILImage.open(file).convert("RGB").resize(size, PILImage.BICUBIC).save(target, quality=90)
        yield load_image_dataset(place)["train"]


def processor() -> ViTImageProcessor:
    """The image processor of ViT-B/16 at 224 px."""
    return ViTImageProcessor(size={"height": SIZE, "width": SIZE})


BATCH = 16  # of images that a worker is asked for at a time


def rate(call: Callable[[Any], object], items: Sequence[Any], rounds: int) -> float:
    """Items a second of processor time: the median over rounds, after one that warms up."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.process_time()
        for item in items:
            call(item)
        seconds.append(time.process_time() - start)
    return len(items) / statistics.median(seconds[1:])


def loading_rates(images: Dataset, rounds: int) -> dict[str, float]:
    """Images a second of one worker: the package's transform, its parts, and the other ways."""
    loaded, process = with_pixel_values(images, processor(), AUGMENTATION), processor()
    rows = [row["image"] for row in images.cast_column("image", Image(decode=False))]
    decoded = [decode_rgb(row) for row in rows]
    augment = AUGMENTATIONS[AUGMENTATION]
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(process.image_mean, process.image_std)])
    resize = v2.Resize((SIZE, SIZE), antialias=True)
    small = [image.resize((SIZE, SIZE), PILImage.BILINEAR) for image in decoded]
    batches = [list(range(len(images)))[start : start + BATCH] for start in range(0, len(images), BATCH)]
    found = {
        "transform": rate(loaded.__getitems__, batches, rounds) * len(images) / len(batches),
        "decode": rate(decode_rgb, rows, rounds),
        "augment": rate(augment, decoded, rounds),
        "resize, normalise": rate(lambda image: process(image, return_tensors="pt"), decoded, rounds),
        "kept decoded": rate(lambda image: process(augment(image), return_tensors="pt"), decoded, rounds),
        "kept at the final size": rate(lambda image: process(augment(image), return_tensors="pt"), small, rounds),
    }
    contents = [_content(row) for row in rows]
    if all(content.startswith(b"\xff\xd8") for content in contents):  # JPEG
        on_tensors = v2.Compose([jpeg_to_tensor, augment, resize, normalise])
        found["JPEG to tensor, v2"] = rate(on_tensors, contents, rounds)
    return found


def jpeg_to_tensor(content: bytes) -> Tensor:
    """uint8 (3, H, W)."""
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


def largest_difference(images: Dataset) -> float:
    """By how many 255ths the way over tensors moves a pixel at most, without augmentation."""
    loaded, process, worst = with_pixel_values(images, processor(), "none"), processor(), 0.0
    for index, row in enumerate(images.cast_column("image", Image(decode=False))):
        pixels = v2.Resize((SIZE, SIZE), antialias=True)(jpeg_to_tensor(_content(row["image"]))).float()
        std, mean = (torch.tensor(values).view(3, 1, 1) for values in (process.image_std, process.image_mean))
        own = 255 * (loaded[index]["pixel_values"] * std + mean)
        worst = max(worst, (own - pixels).abs().max().item())
    return worst


def _content(row: dict[str, Any]) -> bytes:
    return row["bytes"] if row["bytes"] is not None else Path(row["path"]).read_bytes()


def gpu_rates(gpu: str, utilisation: float) -> dict[str, float]:
    """Images a second that a GPU trains ViT-B/16 on in bf16, estimated, by kind of step."""
    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig(num_labels=1000))
    flops = count_flops(model, (SIZE, SIZE))
    reached = get_gpu(gpu).peak("bf16") * 1e12 * utilisation
    return {
        step: reached / sum(count * getattr(flops, kind) for kind, count in passes.items())
        for step, passes in STEPS.items()
    }


def cpu_rates(batch_size: int = 2) -> dict[str, float]:
    """Images a second of processor time that this CPU trains ViT-B/16 on, by kind of step."""
    model = ViTForImageClassification(ViTConfig(num_labels=1000)).train()
    x, labels = torch.rand(batch_size, 3, SIZE, SIZE), torch.zeros(batch_size, dtype=torch.long)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def input_gradient() -> None:
        attacked = x.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(attacked).logits, labels), attacked)

    def a_second(call: Callable[[], object]) -> float:
        return rate(lambda _: call(), [None], 1) * batch_size

    rates = {"training": a_second(lambda: model(x, labels=labels).loss.backward())}
    model.eval().requires_grad_(False)
    rates |= {"input_gradient": a_second(input_gradient), "forward": a_second(forward)}
    return {step: 1 / sum(count / rates[kind] for kind, count in passes.items()) for step, passes in STEPS.items()}


def markdown(report: dict) -> str:
    """A row for each source of images: rates of one worker, and the workers that a step takes."""
    lines = ["| images a second of one worker | " + " | ".join(report["sources"]) + " |"]
    lines += ["|---" * (1 + len(report["sources"])) + "|"]
    found = [source["images a second"] for source in report["sources"].values()]
    for name in found[0]:
        lines.append(f"| {name} | " + " | ".join(f"{each[name]:.0f}" if name in each else "-" for each in found) + " |")
    for where in ("gpu", "cpu"):
        if (speeds := report[where]) is None:
            continue
        for step, speed in speeds.items():
            workers = [f"{math.ceil(speed / each['transform'])} workers" for each in found]
            name = f"{report['estimate for']}, estimated" if where == "gpu" else "this CPU, one thread"
            lines.append(f"| ViT-B/16, {step}, {name}: {speed:.3g} images a second | {' | '.join(workers)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="A folder of photographs. Default: the embedded digits alone.")
    parser.add_argument("--photo-size", type=positive, nargs=2, default=(500, 400), metavar=("W", "H"))
    parser.add_argument("--count", type=positive, default=48, help="Images. Default: 48.")
    parser.add_argument("--rounds", type=positive, default=3, help="After one warm-up round. Default: 3.")
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="To estimate for. Default: h100.")
    parser.add_argument("--utilisation", type=float, default=0.3, help="Share of its peak, assumed. Default: 0.3.")
    parser.add_argument("--no-cpu-step", action="store_true", help="Measure no step here.")
    parser.add_argument("--output", type=Path, help="Write a JSON report here.")
    options = parser.parse_args()
    if not 0 < options.utilisation <= 1:
        parser.error(f"--utilisation is a share in (0, 1], got {options.utilisation}")

    torch.set_num_threads(1)
    sources = {}
    if options.images:
        width, height = options.photo_size
        with photographs(options.images, (width, height), options.count) as images:
            name = f"JPEG files, {width} x {height}"
            sources[name] = {"images a second": loading_rates(images, options.rounds)}
            sources[name]["largest difference over tensors (255ths)"] = largest_difference(images)
    digits = load_image_dataset("digits")["train"].select(range(options.count))
    sources["embedded digits"] = {"images a second": loading_rates(digits, options.rounds)}
    report = {
        "torch": torch.__version__,
        "estimate for": f"{get_gpu(options.gpu).name} bf16 at {options.utilisation:.0%} of its peak",
        "sources": sources,
        "gpu": gpu_rates(options.gpu, options.utilisation),
        "cpu": None if options.no_cpu_step else cpu_rates(),
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(markdown(report))
    for name, source in sources.items():
        for what, value in source.items():
            if what != "images a second":
                print(f"{name}: {what}: {value:.1f}")


if __name__ == "__main__":
    main()
