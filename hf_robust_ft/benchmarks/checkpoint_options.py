"""The options of benchmarks that measure one checkpoint on one dataset."""

import argparse


def checkpoint_parser(description: str, *, eps: str, images: int) -> argparse.ArgumentParser:
    """A parser that knows the checkpoint, the dataset, the norm and the budget.

    Args:
        eps, images: defaults; eps in pixel units of [0, 1].
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="Checkpoint folder or Hub id.")
    parser.add_argument("--dataset", default="digits", help="As in hf-robust-ft evaluate.")
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps", default=eps)
    parser.add_argument("--images", type=int, default=images)
    return parser
