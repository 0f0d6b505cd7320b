"""What can go wrong on the way, on demand: errors, cut connections, damaged bytes, a server that lies."""

import re
from dataclasses import dataclass

# What each kind applies to: any request, the sending of a file's content, its reception, the answer to a commit, a file
# that is committed, or a request that was served.
STAGES = {
    "status": "any",
    "drop": "any",
    "cut": "download",
    "shorten": "download",
    "corrupt": "download",
    "replace": "download",
    "cut_upload": "upload",
    "corrupt_upload": "upload",
    "other_sha": "commit",
    "damage": "store",
    "lose_answer": "answered",
}


@dataclass
class Fault:
    """One planned failure.

    Args:
        kind: "status" answers with an error (502 to 504 with a gateway's page), "drop" closes the connection without
            an answer. Of a file being sent,
            "cut" closes the connection after `keep` of the announced bytes, "shorten" announces and sends only that
            part (with a HEAD that still tells the truth), "corrupt" changes bytes and not their number, "replace"
            sends `content`. Of a file being received, "cut_upload" stops reading and closes, "corrupt_upload" stores
            other bytes. "other_sha" makes the commit and tells another commit's sha. "damage" commits other bytes of a
            file than were sent and says nothing, where the pattern is searched in OWNER/NAME/path. "lose_answer" does
            what is asked, and closes the connection.
        pattern: searched in the request's path, as a regular expression.
        method: "GET", "HEAD", ...; None for all.
        times: how often; None for always.
        status: of "status".
        keep: share of the bytes that arrive, in [0, 1).
        content: of "replace"; as long as the file, to get past the client's own check.
    """

    kind: str
    pattern: str
    method: str | None = None
    times: int | None = 1
    status: int = 500
    keep: float = 0.5
    content: bytes = b""

    def __post_init__(self):
        if self.kind not in STAGES:
            raise ValueError(f"kind must be one of {sorted(STAGES)}, got {self.kind!r}.")
        if not 0 <= self.keep < 1:
            raise ValueError(f"keep must be a share in [0, 1), got {self.keep}.")

    def applies(self, stage: str, method: str, path: str) -> bool:
        return (
            STAGES[self.kind] == stage
            and self.times != 0
            and self.method in (None, method)
            and re.search(self.pattern, path) is not None
        )

    def used(self) -> None:
        if self.times is not None:
            self.times -= 1


def corrupted(content: bytes) -> bytes:
    """As many bytes, some of them others: every 64th, from the middle on."""
    damaged = bytearray(content)
    for position in range(len(damaged) // 2, len(damaged), 64):
        damaged[position] ^= 0xFF
    return bytes(damaged)
