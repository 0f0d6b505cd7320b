"""Licences in a card's metadata, where the Hub takes no identifiers but its own."""

import re
from typing import Any

from hf_robust_ft.provenance.choices import alike, did_you_mean

# The table of https://huggingface.co/docs/hub/repositories-licenses; no client ships it. An id that is newer than this
# copy can stand in a README's own metadata, which the Hub itself checks.
HUB_LICENCES = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5",
    "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0",
    "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0",
    "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl",
    "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0", "openrail++", "osl-3.0", "postgresql", "ofl-1.1",
    "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license",
    "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4",
    "grok2-community", "gemma", "unknown", "other",
)  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


def check_licence(licence: str) -> None:
    """Raise unless the Hub lists a licence.

    Raises:
        ValueError: it does not; with the ids that look alike.
    """
    if licence in HUB_LICENCES:
        return
    near = alike(licence.replace(" ", "-"), HUB_LICENCES, 3)
    meant = did_you_mean(map(repr, near)) or " Examples are 'apache-2.0' and 'mit'."
    raise ValueError(
        f"license={licence!r} is no licence id that the Hub lists.{meant} For any other licence give 'other', and put "
        "its license_name and license_link into the YAML at the head of README.md, where they stay."
    )


def licence_metadata(facts: dict[str, Any]) -> dict[str, str]:
    """`license` of a card and, for one that the Hub does not list, `license_name`; empty where none is known.

    Args:
        facts: a report's metadata: `license`, as given, or else `base_model_license`, which counts where it is the
            name of a licence ("mit", "dinov3-license") and no sentence.

    >>> licence_metadata({"base_model_license": "dinov3-license"})
    {'license': 'other', 'license_name': 'dinov3-license'}
    """
    inherited = facts.get("base_model_license") or "unknown"
    if given := facts.get("license"):
        return {"license": given}
    if inherited == "unknown" or not (inherited in HUB_LICENCES or _NAME.fullmatch(inherited)):
        return {}
    return {"license": inherited} if inherited in HUB_LICENCES else {"license": "other", "license_name": inherited}
