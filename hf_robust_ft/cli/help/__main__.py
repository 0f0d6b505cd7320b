"""Write the help of the slow commands anew: `python -m hf_robust_ft.cli.help`."""

import io
import os
from contextlib import redirect_stdout, suppress
from unittest.mock import patch

from hf_robust_ft.cli.help import FOLDER
from hf_robust_ft.cli.main import COMMANDS
from hf_robust_ft.runs.option_help import ESSENTIALS


def render(command: str) -> str:
    """What a command's parser says to `--help`, 88 columns wide."""
    said = io.StringIO()
    with patch.dict(os.environ, COLUMNS="90"), redirect_stdout(said), suppress(SystemExit):
        COMMANDS[command](["--help"])
    return said.getvalue()


if __name__ == "__main__":
    for command in ESSENTIALS:
        (FOLDER / f"{command}.txt").write_text(render(command), encoding="utf-8")
