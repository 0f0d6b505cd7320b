"""What a checkpoint from elsewhere may do here: give tensors, but neither run code of its own nor be unpickled."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SAFETENSORS = {"use_safetensors": True}  # of `from_pretrained`, wherever it reads weights


def no_code(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained`, `trust_remote_code` off unless they say otherwise: unset, transformers asks."""
    return {"trust_remote_code": False, **options}


@contextmanager
def refusals_explained(model_id: str) -> Iterator[None]:
    """What transformers refuses to load without trust, in words that name the ways out.

    Raises:
        ValueError: the checkpoint brings its own code, or has no weights in safetensors.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code=True" not in str(error):
            raise
        raise ValueError(
            f"{model_id} brings Python code of its own, which is not run unasked. Read it first; if you trust it, give "
            "--trust_remote_code (in Python trust_remote_code=True), best with the revision that you read."
        ) from error
    except OSError as error:
        if "use_safetensors" not in str(error) and "no file named model.safetensors" not in str(error):
            raise
        raise ValueError(
            f"{model_id} has no weights in safetensors (model.safetensors), and pickles (pytorch_model.bin) are not "
            "loaded, since they can run code. Convert them where you trust them, with model.save_pretrained(folder), "
            "or name the file itself as the model, with its architecture: it is then read as plain tensors."
        ) from error
