"""Names of models, datasets and settings as names of files: one part of a path, whatever they hold."""

import hashlib
import re

LONGEST = 180  # bytes; file systems take 255, and endings are added


def as_file_name(text: str) -> str:
    """The text as one part of a path: without separators or control characters, not hidden, and not too long.

    A long one is cut and told from others by a checksum.

    >>> as_file_name("timm/resnet18-cub200"), as_file_name("../../etc/passwd"), as_file_name("open_clip:ViT-B-32")
    ('timm-resnet18-cub200', '-.-..-etc-passwd', 'open_clip-ViT-B-32')
    """
    name = re.sub(r"[/\\:\x00-\x1f\x7f]", "-", text)
    name = re.sub(r"^\.", "-", name) or "-"
    encoded = name.encode("utf-8", "replace")
    if len(encoded) <= LONGEST:
        return name
    checksum = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{encoded[:LONGEST].decode('utf-8', 'ignore')}-{checksum}"
