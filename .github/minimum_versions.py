"""The oldest versions that setup.cfg allows, as a pip constraint file: python .github/minimum_versions.py > floors.txt

For `pip install -c floors.txt -e .[test]`, which then installs exactly these.
"""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parent.parent / "setup.cfg"
OWN = "hf_robust_ft"  # an extra may name others of this package


def requirements(setup: Path = SETUP) -> dict[str, list[str]]:
    """The requirements of each extra, and as "" those of the package itself."""
    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    groups = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {group: [line for line in text.split("\n") if line.strip()] for group, text in groups.items()}


def floors(setup: Path = SETUP) -> dict[str, str]:
    """The oldest version of each package, by its name.

    Raises:
        ValueError: a package without a floor (`name>=version` or `name==version`), or with two different ones.
    """
    found: dict[str, str] = {}
    for group, lines in requirements(setup).items():
        for line in lines:
            if line.startswith(f"{OWN}["):
                continue
            match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:>=|==)([0-9][A-Za-z0-9.]*)", line.strip())
            if match is None:
                raise ValueError(f"[{group or 'install_requires'}] {line!r} states no oldest version: name>=version.")
            name, version = match.groups()
            if found.setdefault(name, version) != version:
                raise ValueError(f"{name} has two oldest versions: {found[name]} and {version} (extra {group}).")
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in sorted(floors().items())))
