"""Pages that need nothing but themselves: templates of this folder, filled in with styles and scripts inlined."""

import base64
import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_robust_ft.provenance.atomic import write_whole
from hf_robust_ft.provenance.record import library_versions

FOLDER = Path(__file__).parent
GENERATOR = "hf_robust_ft page"


def render_template(name: str, scripts: Sequence[str] = (), libraries: Sequence[str] = (), **values: Any) -> str:
    """Fill in a page's template; all text is escaped.

    Args:
        name: a file of this folder.
        scripts: JavaScript modules for the end of the page, in this order.
        libraries: JavaScript that is stored packed, which makes it less than half as long; `page.js` unpacks it.
        values: what the template shows.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # no JSON, though Python writes it
    return environment.get_template(name).render(
        **values,
        css=Markup(read_asset("page.css")),
        scripts=[Markup(_checked(script)) for script in scripts],
        libraries=[_packed(library) for library in libraries],
        policy=_policy([*libraries, *scripts]),
        generator=GENERATOR,
        version=library_versions().get("hf_robust_ft", ""),
    )


def read_asset(name: str) -> str:
    """The text of a file of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


def write_page(page: str, path: str | Path) -> None:
    """Write the page whole or not at all.

    Raises:
        ValueError: another kind of file is there already, which must not be lost.
    """
    check_target(path)
    write_whole(path, page)


def check_target(path: str | Path) -> None:
    """Refuse to write over what is no page of ours, before any work is done.

    Raises:
        ValueError: it is a folder, or a file that another program wrote.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file for the page, such as {path / 'report.html'}.")
    if path.is_file() and GENERATOR.encode() not in path.read_bytes()[:20_000]:
        raise ValueError(f"{path} exists and is no page that this command wrote: choose another file or remove it.")


def _policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy: no network at all, and no script but these, whatever a report holds."""
    sources = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{source}'" for source in sources) or "'none'"
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"


def _packed(script: str) -> str:
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _checked(script: str) -> str:
    if "</script" in script.lower():
        raise ValueError("A script that holds '</script' cannot be inlined: it would end there.")
    return script
