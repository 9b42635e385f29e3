"""Checksums of written files."""

import hashlib
from pathlib import Path

__all__ = ["digest"]


def digest(folder: Path) -> dict[str, str]:
    """Checksum of each file below a folder, by its path there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
