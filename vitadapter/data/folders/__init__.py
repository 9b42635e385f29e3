"""Folders as people have them: recognised, read, checked and turned into what loaders take."""

from vitadapter.data.folders.config import resolve_root
from vitadapter.data.folders.splits import FolderSettings

__all__ = ["FolderSettings", "resolve_root"]
