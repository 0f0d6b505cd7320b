"""Replicas of the paper's five datasets as their Hub copies are, but with images of 8 x 8 pixels.

Ids, commits, splits, shards, columns, their types, numbers of classes and rows are the real ones, as far as stored Hub
pages tell them (September 2024 to 2025; the Hub itself was out of reach), so that what is checked against real sizes
holds here too. Class names are the real ones for the first classes and numbered ones after. As in the real copies, rows
are sorted by class. Known of each copy:

- Donghyun99/FGVC-Aircraft: `label` is the family (70 classes), `variation` the variant (100, the paper's classes),
  `manufacturer` the maker (30); its second split is called `val`.
- ilee0022/Caltech-256: `label` is a plain integer from 1 to 257, `text` the class's name.
- Donghyun99/Stanford-Dogs: class indices in no particular order, the first rows are of index 119, Chihuahua.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PILImage

NAMES = {
    "birds": ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani"),
    "cars": ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012", "Acura TL Type-S 2008"),
    "dogs": ("komondor", "German_shepherd", "toy_poodle", "pug", "Yorkshire_terrier", "Doberman"),
    "families": ("MD-11", "Boeing 717", "Challenger 600", "Beechcraft 1900", "Boeing 737"),
    "variants": ("MD-80", "MD-87", "727-200", "737-200", "757-200", "747-400", "A321"),
    "makers": ("Airbus", "Boeing", "McDonnell Douglas", "Canadair"),
    "things": ("ak47", "american-flag", "backpack", "baseball-bat", "baseball-glove", "basketball-hoop"),
}


def class_names(kind: str, number: int) -> list[str]:
    return [*NAMES[kind], *(f"{kind}-{index}" for index in range(len(NAMES[kind]), number))][:number]


@dataclass(frozen=True)
class Replica:
    """One copy: `columns` beside `image` are class labels (a kind of names and their number) or plain values.

    `sha` is the commit that is to be the head of main; None where only its first digits are known.
    """

    repo_id: str
    columns: Mapping[str, tuple[str, int] | str]
    rows: Mapping[str, int]
    shards: Mapping[str, int]
    classes: int
    sha: str | None = None

    @property
    def features(self) -> Features:
        return Features(
            {"image": Image()}
            | {
                name: Value(kind) if isinstance(kind, str) else ClassLabel(names=class_names(*kind))
                for name, kind in self.columns.items()
            }
        )


REPLICAS = {
    "caltech256": Replica(
        "ilee0022/Caltech-256",
        {"label": "int64", "text": "string"},
        rows={"train": 24791, "validation": 2755, "test": 3061},
        shards={"train": 2, "validation": 1, "test": 1},
        classes=257,
    ),
    "cub200": Replica(
        "Donghyun99/CUB-200-2011",
        {"label": ("birds", 200)},
        rows={"train": 5994, "test": 5794},
        shards={"train": 2, "test": 2},
        classes=200,
        sha="0e344a8256fa95fe1e5c05325d407a94a961dbab",
    ),
    "stanford_dogs": Replica(
        "Donghyun99/Stanford-Dogs",
        {"label": ("dogs", 120)},
        rows={"train": 12000, "test": 8580},
        shards={"train": 1, "test": 1},
        classes=120,
    ),
    "stanford_cars": Replica(
        "Donghyun99/Stanford-Cars",
        {"label": ("cars", 196)},
        rows={"train": 8144, "test": 8041},
        shards={"train": 2, "test": 2},
        classes=196,
        sha="c9c43a068ed98f2bb655814a01eacbe2afc2e3f1",
    ),
    "fgvc_aircraft": Replica(
        "Donghyun99/FGVC-Aircraft",
        {"label": ("families", 70), "variation": ("variants", 100), "manufacturer": ("makers", 30)},
        rows={"train": 3334, "val": 3333, "test": 3333},
        shards={"train": 2, "val": 2, "test": 2},
        classes=100,
        sha="3237e2c15db36fa9016794561b7aae6b49eef9a2",
    ),
}


def picture(seed: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8) if mode == "L" else (8, 8, 3), dtype=np.uint8)
    with io.BytesIO() as buffer:
        PILImage.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()


# A few pictures stand for all: parquet then stores each once. One is grey, as some of Caltech-256 are.
PICTURES = [picture(seed) for seed in range(7)] + [picture(7, "L")]


def table(replica: Replica, rows: int) -> pa.Table:
    """Rows sorted by class, with as many of each class as the number allows."""
    classes = np.sort(np.arange(rows) % replica.classes)
    columns = {
        "image": pa.array(
            [{"bytes": PICTURES[row % len(PICTURES)], "path": f"{row:05d}.png"} for row in range(rows)],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        )
    }
    names = class_names("things", 257)
    for name, kind in replica.columns.items():
        if kind == "string":
            columns[name] = pa.array([names[index] for index in classes])
        elif kind == "int64":
            columns[name] = pa.array(classes + 1)
        elif kind[0] == "dogs":
            columns[name] = pa.array(kind[1] - 1 - classes)
        else:
            columns[name] = pa.array(classes * kind[1] // replica.classes)
    return pa.table(columns, schema=replica.features.arrow_schema)


def parquet(rows: pa.Table) -> bytes:
    with io.BytesIO() as buffer:
        pq.write_table(rows, buffer, compression="none")
        return buffer.getvalue()


def card(replica: Replica, sizes: Mapping[str, int]) -> str:
    """The head of the README that `push_to_hub` writes: features, numbers of rows, which files make which split."""
    info = {
        "features": replica.features._to_yaml_list(),
        "splits": [{"name": split, "num_bytes": sizes[split], "num_examples": n} for split, n in replica.rows.items()],
        "download_size": sum(sizes.values()),
        "dataset_size": sum(sizes.values()),
    }
    files = [{"split": split, "path": f"data/{split}-*"} for split in replica.rows]
    head = {"dataset_info": info, "configs": [{"config_name": "default", "data_files": files}]}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n# {replica.repo_id}\n"


def replica_files(replica: Replica, declared: bool = True) -> dict[str, bytes | str]:
    """The repository's files; `declared=False` leaves out the README, and with it every promise of rows."""
    files, sizes = {}, {}
    for split, rows in replica.rows.items():
        whole, shards = table(replica, rows), replica.shards[split]
        bounds = [rows * shard // shards for shard in range(shards + 1)]
        for shard, (start, end) in enumerate(pairwise(bounds)):
            path = f"data/{split}-{shard:05d}-of-{shards:05d}.parquet"
            files[path] = parquet(whole.slice(start, end - start))
            sizes[split] = sizes.get(split, 0) + len(files[path])
    return files | ({"README.md": card(replica, sizes)} if declared else {})
