"""The API reference, from docstrings: `python .github/api_reference.py [FOLDER]` (extra `docs`; FOLDER: api)."""

import sys
import warnings
from pathlib import Path

import pdoc

import hf_robust_ft

# Rooms beside the package's own names, whose `__init__` lists what others may use.
ROOMS = ("hf_robust_ft", "hf_robust_ft.attacks", "hf_robust_ft.schedules", "hf_robust_ft.models", "hf_robust_ft.hub")


def write_reference(folder: Path) -> None:
    """One page a room; a docstring that pdoc warns of is an error."""
    for name in hf_robust_ft.__all__:  # pdoc looks for what has been imported
        vars(hf_robust_ft)[name] = getattr(hf_robust_ft, name)
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="pdoc")
        pdoc.pdoc(*ROOMS, output_directory=folder)


if __name__ == "__main__":
    target = Path(*sys.argv[1:] or ["api"])
    write_reference(target)
    print(f"{target / 'index.html'}: open it in a browser.")
