"""What a report says of the run behind its figures: every fact by name, grouped by who knows it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

OF_MODEL = {"kept": True}  # an evaluation of a checkpoint takes these from the checkpoint's own report


@dataclass(frozen=True, eq=False, repr=False)
class RunFacts(Mapping):
    """The facts of a run, each None where nobody knows it. As a mapping it holds those that are known, by name.

    >>> facts = RunFacts().merged(dataset="digits", split="test")
    >>> facts.merged(split=None, notes=["A demonstration."])
    {'notes': ['A demonstration.'], 'dataset': 'digits'}

    `other` holds what has no field: facts of a user's own, or of another version of this package.
    """

    # How the weights came about.
    base_model: str | None = field(default=None, metadata=OF_MODEL)  # Hub id
    base_model_text: str | None = field(default=None, metadata=OF_MODEL)  # where it has none
    base_model_commit: str | None = field(default=None, metadata=OF_MODEL)
    base_model_license: str | None = field(default=None, metadata=OF_MODEL)
    head: str | None = field(default=None, metadata=OF_MODEL)
    augmentation: str | None = field(default=None, metadata=OF_MODEL)
    training: dict[str, Any] | None = field(default=None, metadata=OF_MODEL)
    probe: dict[str, Any] | None = field(default=None, metadata=OF_MODEL)  # the head that training started from
    recipes: list[str] | None = field(default=None, metadata=OF_MODEL)
    seeds: dict[str, int] | None = field(default=None, metadata=OF_MODEL)
    license: str | None = field(default=None, metadata=OF_MODEL)
    model_name: str | None = field(default=None, metadata=OF_MODEL)
    language: Any = field(default=None, metadata=OF_MODEL)
    tags: Any = field(default=None, metadata=OF_MODEL)
    notes: list[str] | None = field(default=None, metadata=OF_MODEL)  # sentences for the limitations

    # Which images, and what was done to them.
    dataset: str | None = None
    dataset_name: str | None = None
    dataset_alias: str | None = None
    dataset_path: str | None = None
    dataset_on_hub: bool | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_commit: str | None = None
    dataset_license: str | None = None
    dataset_citation: str | None = None
    dataset_note: str | None = None
    split: str | None = None
    splitting: dict[str, Any] | None = None
    split_sizes: dict[str, Any] | None = None
    paper_split_sizes: dict[str, Any] | None = None
    skipped_images: dict[str, Any] | None = None
    streaming: dict[str, Any] | bool | None = None
    transforms: Any = None
    source_digest: str | None = None  # of the files

    # How it was measured.
    weights_sha256: dict[str, str] | None = None
    evaluated_in: str | None = None  # half precision
    memory_format: str | None = None

    # By what.
    versions: dict[str, str] | None = None
    hardware: Any = None
    git: Any = None
    command: str | None = None
    recipe: dict[str, Any] | None = None  # all settings, `hf-robust-ft train --config`'s
    resumed_with_changes: list[str] | None = None

    # Where it is.
    repo_id: str | None = None

    other: dict[str, Any] = field(default_factory=dict)

    def merged(self, *sources: Mapping[str, Any], **facts: Any) -> "RunFacts":
        """These facts and the given ones, of which later ones replace earlier ones; None forgets one.

        The one place where facts of several sources come together.
        """
        together = dict(self)
        for source in (*sources, facts):
            together.update(source)
        together.update(together.pop("other", {}))
        known = {name: together.pop(name) for name in _NAMES if name in together}
        return RunFacts(**known, other={name: value for name, value in together.items() if value is not None})

    def __or__(self, facts: Mapping[str, Any]) -> "RunFacts":
        return self.merged(facts)

    def of_model(self) -> dict[str, Any]:
        """Those that an evaluation of the finished checkpoint does not know by itself."""
        return {name: value for name, value in self.items() if name in _OF_MODEL}

    def __getitem__(self, name: str) -> Any:
        value = getattr(self, name) if name in _NAMES else self.other[name]
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in _NAMES if getattr(self, name) is not None)
        yield from self.other

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


_NAMES = tuple(entry.name for entry in fields(RunFacts) if entry.name != "other")
_OF_MODEL = {entry.name for entry in fields(RunFacts) if entry.metadata == OF_MODEL}
