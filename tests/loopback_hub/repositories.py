"""Repositories in memory, with the commits, ids and ETags that the Hub gives them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

# From the .gitattributes that the Hub puts into every new repository, and images, which dataset repositories add.
LFS_SUFFIXES = {
    *(".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".gz", ".h5", ".jpeg", ".jpg", ".msgpack", ".npy", ".npz", ".onnx"),
    *(".parquet", ".pickle", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".tar", ".tgz", ".webp", ".zip", ".zst"),
}
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES))
DATE = "2026-01-01T00:00:00.000Z"


def is_large(path: str, sample: bytes = b"") -> bool:
    """Whether the Hub stores this file as LFS: by its suffix, or because it is binary."""
    return PurePosixPath(path).suffix.lower() in LFS_SUFFIXES or b"\0" in sample


def blob_id(content: bytes) -> str:
    """Git's id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class StoredFile:
    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself holds of a large file."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.content)}")
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def oid(self) -> str:
        return blob_id(self.pointer if self.large else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else blob_id(self.content)

    def entry(self, path: str) -> dict:
        """The file as the tree and paths-info endpoints tell it."""
        entry = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        if self.large:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    description: str
    author: str
    files: Mapping[str, StoredFile]
    changed: frozenset[str]
    parent: "Commit | None" = None


@dataclass
class Repository:
    """A repository with branches, tags and pull requests, each of which names a commit.

    Args:
        repo_id: "owner/name".
        kind: "model", "dataset" or "space".
        private: only its owner sees it.
        gated: everybody sees it, `readers` alone download its files.
    """

    repo_id: str
    kind: str = "model"
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def __post_init__(self):
        self.branches["main"] = None
        self.commit({".gitattributes": GITATTRIBUTES}, title="initial commit", author=self.owner)

    @property
    def owner(self) -> str:
        return self.repo_id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.branches["main"]

    @property
    def pull_requests(self) -> dict[str, Commit]:
        return {name: commit for name, commit in self.branches.items() if name.startswith("refs/pr/")}

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a clone at `revision` would hold, the .gitattributes aside."""
        stored = self.resolve(revision).files
        return {path: file.content for path, file in stored.items() if path != ".gitattributes"}

    def resolve(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag, a pull request (refs/pr/1) or a full sha names."""
        return self.branches.get(revision) or self.tags.get(revision) or self.commits.get(revision)

    def commit(
        self,
        files: Mapping[str, bytes | str | StoredFile],
        *,
        delete: tuple[str, ...] = (),
        branch: str = "main",
        onto: Commit | None = None,
        title: str = "Upload",
        description: str = "",
        author: str = "",
        sha: str | None = None,
    ) -> Commit:
        """Add a commit on `branch` (a new one starts from `onto`); files that are not named stay as they are.

        `sha` gives it the id of a real commit, for code that pins one; else it follows from what is committed.
        """
        parent = self.branches.get(branch) or onto
        tree = dict(parent.files) if parent else {}
        for path, content in files.items():
            if isinstance(content, str):
                content = content.encode()
            stored = content if isinstance(content, StoredFile) else StoredFile(content, is_large(path, content[:512]))
            tree[path] = stored
        removed = {path for path in tree if any(path == name or path.startswith(name + "/") for name in delete)}
        tree = {path: file for path, file in tree.items() if path not in removed}
        lines = [f"{len(self.commits)} {parent.sha if parent else ''} {self.kind} {self.repo_id} {title}"]
        lines += [f"{path} {file.oid}" for path, file in sorted(tree.items())]
        sha = sha or hashlib.sha1("\n".join(lines).encode()).hexdigest()
        commit = Commit(sha, title, description, author, tree, frozenset(files) | removed, parent)
        self.branches[branch] = self.commits[sha] = commit
        return commit
