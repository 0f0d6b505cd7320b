"""`--help` of the commands that take what Trainer takes, as it was rendered from their fields.

To build such a parser means to import torch and transformers, seconds before anybody reads a word. So the text lies
here, one file a command; `tests/cli/test_help.py` compares it with the parser's. After changing an option:
`python -m hf_robust_ft.cli.help`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def short_help(command: str) -> str | None:
    """A command's `--help`; None where its parser is quick to build."""
    file = FOLDER / f"{command}.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else None
