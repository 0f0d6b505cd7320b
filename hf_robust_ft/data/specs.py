"""The paper's five datasets: where the Hub keeps them, and how their images are split (arXiv 2509.23325, appendix)."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset of the paper.

    Args:
        name: the alias that `load_image_dataset` takes.
        hub_id: a copy in parquet; repositories with loading scripts no longer load.
        revision: the commit to load; "main" where no full commit id is known, and the one loaded is then recorded.
        label_column: the classes.
        num_classes: how many there must be.
        source_sizes: rows of each split of the Hub copy.
        sizes: rows of each split as loaded here, of a complete copy.
        pooled: the copy's own splits are put together and split anew.
        paper_sizes: what the paper states; empty where it states nothing.
        license: of the images, as their publishers word it.
        citation: authors, title, year.
        verified: what of this was seen where. The Hub itself was out of reach when this was written.
        note: what else a reader of results should know.
    """

    name: str
    hub_id: str
    num_classes: int
    source_sizes: Mapping[str, int]
    sizes: Mapping[str, int]
    license: str
    citation: str
    verified: str
    revision: str = "main"
    label_column: str = "label"
    image_column: str = "image"
    pooled: bool = False
    paper_sizes: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self):
        for name in ("source_sizes", "sizes", "paper_sizes"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


_SPECS = (
    DatasetSpec(
        name="caltech256",
        hub_id="ilee0022/Caltech-256",
        num_classes=257,
        source_sizes={"train": 24791, "validation": 2755, "test": 3061},
        sizes={"train": 14649, "validation": 771, "test": 15187},
        paper_sizes={"train": 14649, "validation": 771, "test": 15187},
        pooled=True,
        label_column="text",
        license="CC BY 4.0 (CaltechDATA)",
        citation="Griffin, Holub, Perona: Caltech-256 Object Category Dataset. Caltech, CNS-TR-2007-001, 2007.",
        verified="Splits, their rounded sizes (24.8k/2.76k/3.06k) and columns on stored Hub pages; the total is the "
        "publishers' 30,607. `label` counts from 1 without names, `text` holds the name: classes come from `text`.",
        note="Of each of the 257 classes (clutter included) 57 images train, 3 validate and the rest test, which gives "
        "the paper's sizes; which images those are is drawn here, the paper's own draw is not published.",
    ),
    DatasetSpec(
        name="cub200",
        hub_id="Donghyun99/CUB-200-2011",
        revision="0e344a8256fa95fe1e5c05325d407a94a961dbab",
        num_classes=200,
        source_sizes={"train": 5994, "test": 5794},
        sizes={"train": 5394, "validation": 600, "test": 5794},
        paper_sizes={"train": 5394, "validation": 600, "test": 5794},
        license="non-commercial research and education (Caltech)",
        citation="Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset. CNS-TR-2011-001, "
        "2011.",
        verified="Commit, files and rounded sizes (5.99k/5.79k) on stored Hub pages; exact sizes are the publishers'.",
    ),
    DatasetSpec(
        name="stanford_dogs",
        hub_id="Donghyun99/Stanford-Dogs",
        num_classes=120,
        source_sizes={"train": 12000, "test": 8580},
        sizes={"train": 10800, "validation": 1200, "test": 8580},
        paper_sizes={"train": 10800, "validation": 1200, "test": 8580},
        license="not stated; images from ImageNet (non-commercial research and education)",
        citation="Khosla, Jayadevaprakash, Yao, Fei-Fei: Novel Dataset for Fine-Grained Image Categorization. FGVC "
        "workshop, CVPR 2011.",
        verified="Repository and its splits on stored Hub pages; sizes are the publishers'.",
        note="The images come from ImageNet: every ImageNet-pretrained checkpoint has been trained on many of them.",
    ),
    DatasetSpec(
        name="stanford_cars",
        hub_id="Donghyun99/Stanford-Cars",
        revision="c9c43a068ed98f2bb655814a01eacbe2afc2e3f1",
        num_classes=196,
        source_sizes={"train": 8144, "test": 8041},
        sizes={"train": 7330, "validation": 814, "test": 1000},
        paper_sizes={"test": 1000},
        license="non-commercial research (Stanford)",
        citation="Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization. 3dRR-13, "
        "ICCV 2013.",
        verified="Commit and files on stored Hub pages; sizes are the publishers'.",
        note="The test split is a stratified draw of 1000, as in the paper, whose seed is not published: about +-3 "
        "points at 95 %. The paper states no validation size; 10 % of train is held out, as for CUB and Dogs.",
    ),
    DatasetSpec(
        name="fgvc_aircraft",
        hub_id="Donghyun99/FGVC-Aircraft",
        revision="3237e2c15db36fa9016794561b7aae6b49eef9a2",
        label_column="variation",
        num_classes=100,
        source_sizes={"train": 3334, "validation": 3333, "test": 3333},
        sizes={"train": 3334, "validation": 3333, "test": 1000},
        paper_sizes={"test": 1000},
        license="non-commercial research (images by airliners.net photographers)",
        citation="Maji, Kannala, Rahtu, Blaschko, Vedaldi: Fine-Grained Visual Classification of Aircraft. "
        "arXiv:1306.5151, 2013.",
        verified="Commit, columns, split names (train, val, test) and rounded sizes (3.33k each) on stored Hub pages; "
        "exact sizes are the publishers'. Its `label` is the family (70 classes), `variation` the paper's 100.",
        note="The test split is a stratified draw of 1000, as in the paper, whose seed is not published: about +-3 "
        "points at 95 %. Train and validation are the publishers' own; the paper does not state its own.",
    ),
)

SPECS: Mapping[str, DatasetSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def expected_sizes(dataset_id: str) -> dict[str, int] | None:
    """How many images each split of one of the paper's datasets holds, without a network; None for any other id.

    >>> expected_sizes("cub200")
    {'train': 5394, 'validation': 600, 'test': 5794}
    """
    return dict(SPECS[dataset_id].sizes) if dataset_id in SPECS else None


def nearest_names(dataset_id: str) -> list[str]:
    """The dataset names that a misspelt one comes nearest to, best first.

    >>> nearest_names("CUB-200")
    ['cub200']
    """
    known = {_plain(name): name for name in (*SPECS, "digits")}
    return [known[match] for match in difflib.get_close_matches(_plain(dataset_id), known, n=3, cutoff=0.5)]


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
