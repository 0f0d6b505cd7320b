"""The metric module as a Space, from where `evaluate.load("OWNER/NAME")` takes it."""

import html
import re
import shlex
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from hf_robust_ft.hub.errors import PublishError, cause_to_show, described
from hf_robust_ft.hub.repository import CLIENT_ERRORS, check_online, check_repo_id, create_repository
from hf_robust_ft.hub.uploading import upload

METRIC = Path(__file__).parent.parent / "metrics" / "robustness"
SCRIPT = "robustness.py"
MODULES = (  # what the script imports
    "class_indices.py", "curve.py", "masks.py", "threat_distributions.py", "threat_distribution_specs.py",
)  # fmt: skip
REQUIREMENTS = "evaluate\ndatasets\nnumpy\nscipy\n"
LOCAL_NAME = "path/to/hf_robust_ft/metrics/robustness"  # in the README of the package
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Metric: robustness</title>
<p>Clean accuracy, adversarial accuracy and expected robustness of an image classifier.</p>
<pre>import evaluate

robustness = evaluate.load("{repo_id}")</pre>
<p>Inputs, outputs and examples: README.md in Files.</p>
"""


def publish_metric(
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Publish the robustness metric",
) -> CommitInfo:
    """Publish the metric module as a Space.

    `evaluate` looks in a Space OWNER/NAME for NAME.py, so the script takes the Space's name.

    Args:
        repo_id: OWNER/NAME, or a name of one's own; created if it is not there.

    Returns:
        The verified commit.

    Raises:
        ValueError: an impossible name.
        PublishError: the Hub refused, was out of reach, or holds something else than was sent.
    """
    check_repo_id(repo_id)
    name = repo_id.split("/")[-1]
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name) or f"{name}.py" in MODULES:
        raise ValueError(
            f"A metric's Space cannot be called {name!r}: its name becomes a Python module's, beside "
            f"{', '.join(MODULES)}. Take letters, digits, _ and -, such as your-name/robustness."
        )
    check_online()
    resume = f" Go on with: {shlex.join(['hf-robust-ft', 'publish-metric', repo_id])}{' --private' if private else ''}"
    try:
        repo_id = create_repository(repo_id, repo_type="space", space_sdk="static", token=token, private=private)
        with tempfile.TemporaryDirectory() as folder:
            files = metric_files(repo_id, Path(folder))
            return upload(HfApi(token=token), repo_id, files, message=commit_message, repo_type="space")
    except PublishError as error:
        raise PublishError(f"{error}{resume}") from error.__cause__
    except CLIENT_ERRORS as error:
        raise PublishError(f"Publishing {repo_id} failed: {described(error, token)}{resume}") from cause_to_show(
            error, token
        )


def metric_files(repo_id: str, folder: Path) -> dict[str, Path]:
    """What the Space holds, by path in it; what names the Space is written into `folder`."""
    written = {
        "README.md": (METRIC / "README.md").read_text(encoding="utf-8").replace(LOCAL_NAME, repo_id),
        "index.html": PAGE.format(repo_id=html.escape(repo_id)),
        "requirements.txt": REQUIREMENTS,
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    script = f"{repo_id.split('/')[-1]}.py"
    return (
        {name: folder / name for name in written}
        | {name: METRIC / name for name in MODULES}
        | {script: METRIC / SCRIPT}
    )
