"""The namespace ``torch.ops.vitadapter``: compiled where the extension is built, else Python."""

import torch

from vitadapter.layers.extension import load_extension

__all__ = ["EXTENSION_LOADED", "LIBRARY", "define_unless_compiled"]

EXTENSION_LOADED = load_extension()
LIBRARY = torch.library.Library("vitadapter", "FRAGMENT")


def define_unless_compiled(schema: str) -> None:
    """Define an operator whose schema the extension would otherwise have brought along."""
    if not EXTENSION_LOADED:
        LIBRARY.define(schema)
