"""What the reports of all tasks share as files: a dataclass as JSON, which says its version and is read back equal."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from hf_robust_ft.evaluation.trust_verdicts import TrustCheck, summary
from hf_robust_ft.provenance.facts import RunFacts


class StoredReport:
    """Base of a task's report: a frozen dataclass with `metadata`, `schema_version`, and where it was checked `checks`.

    Attributes:
        newest_schema: the `schema_version` of reports that are written.
        described: what messages call it, "robustness report".
    """

    newest_schema: ClassVar[int]
    described: ClassVar[str]

    def to_json(self, path: str | Path) -> None:
        """Write the report; `from_json` reads it back equal."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**dataclasses.asdict(self), "metadata": dict(self.metadata)}

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read a report.

        Raises:
            ValueError: the file is no JSON, is of another task, holds other keys or values than such a report's, or is
                of a newer version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON file: {error}.") from None
        cls._check_task(path, content)
        version = content.pop("schema_version", 1) if isinstance(content, dict) else 1
        if not isinstance(version, int) or version > cls.newest_schema:
            raise ValueError(
                f"{path} is a report of schema_version {version!r}, this package reads those up to "
                f"{cls.newest_schema}: pip install --upgrade hf_robust_ft."
            )
        names = {entry.name for entry in dataclasses.fields(cls)}
        required = {entry.name for entry in dataclasses.fields(cls) if _has_no_default(entry)}
        if not isinstance(content, dict) or set(content) - names or required - set(content):
            held = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path} is no {cls.described}: expected the keys {sorted(names)}, found {held}.")
        try:
            return cls(**content)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is no {cls.described}: {type(error).__name__}: {error}.") from None

    @classmethod
    def _check_task(cls, path: str | Path, content: Any) -> None:
        """Raise a ValueError for a file's content that is of another task."""

    def with_metadata(self, **metadata: Any) -> Self:
        """The same measurement with more said about it; None forgets a fact."""
        return dataclasses.replace(self, metadata=self.metadata.merged(metadata))

    def check_lines(self) -> str:
        """The trust checks, a line each."""
        return summary([TrustCheck(**check) for check in self.checks])

    def _settle(self, reliability_of: Callable[[Any], dict[str, Any]]) -> None:
        """Make facts of the metadata, and enter the verdict in place of whatever was given."""
        object.__setattr__(self, "metadata", RunFacts().merged(self.metadata))
        object.__setattr__(self, "reliability", reliability_of(self))

    def _precision_lines(self) -> list[str]:
        """What a report in half precision says of it when printed."""
        if not (precision := self.metadata.evaluated_in):
            return []
        return [f"measured in {precision}: attacks find fewer errors than in fp32, robust figures may be too high"]


def _has_no_default(entry: dataclasses.Field) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
