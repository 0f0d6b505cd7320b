"""The worst of what several attacks found, for each image: of pixel accuracy, and of mean IoU (arXiv 2306.12941).

The right pixels of an image count for themselves, so the worst attack on it is the one that leaves fewest. Mean IoU is
of the data set: which attack on an image lowers it most depends on the others, and is looked for image by image.
Checked against the authors' https://github.com/nmndeep/Robust-Segmentation, tools/worse_only.py, which also takes the
attack of lowest accuracy an image, and goes over the images greedily, again and again, for mean IoU. There the accuracy
is the mean of the images' own; here it is over all pixels, the same where images have equally many labelled ones.
"""

import numpy as np

from hf_robust_ft.evaluation.segmentation.counts import RIGHT, mean_iou

PASSES = 5  # over all images; a second one hardly ever changes anything


def fewest_right(candidates: np.ndarray) -> np.ndarray:
    """The counts (N, 3, K) of the candidate with fewest right pixels, for each image.

    Args:
        candidates: (A, N, 3, K), of A attacks.
    """
    worst = candidates[..., RIGHT, :].sum(-1).argmin(0)
    return candidates[worst, np.arange(candidates.shape[1])]


def lowest_mean_iou(candidates: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Counts (N, 3, K), one candidate an image, whose sum has a mean IoU no higher than that of `start`.

    Args:
        candidates: (A, N, 3, K).
        start: (N, 3, K), what to begin with; kept where no candidate is worse.
    """
    chosen = start.copy()
    total = chosen.sum(0)
    for _ in range(PASSES):
        before = mean_iou(total)
        for image in range(len(chosen)):
            others = total - chosen[image]
            scores = mean_iou(others + candidates[:, image])
            best = int(np.argmin(scores))
            if scores[best] < mean_iou(total):
                chosen[image] = candidates[best, image]
                total = others + chosen[image]
        if not mean_iou(total) < before:
            break
    return chosen


def curves(candidates: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left at each eps, the worst case for pixel accuracy and for mean IoU, both (E, N, 3, K).

    What was found within a smaller ball lies within each larger one, so neither score rises with eps.

    Args:
        candidates: (E, A, N, 3, K), of A attacks at each eps from the second on.
        clean: (N, 3, K), at eps 0.
    """
    fewest, lowest = [clean], [clean]
    for found in candidates:
        fewest.append(fewest_right(np.concatenate([found, fewest[-1][None]])))
        whole = min([*found, fewest[-1], lowest[-1]], key=lambda each: mean_iou(each.sum(0)))  # one for all images
        lowest.append(lowest_mean_iou(np.concatenate([found, lowest[-1][None]]), whole))
    return np.stack(fewest), np.stack(lowest)
