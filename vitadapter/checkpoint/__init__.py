"""Converters: pure functions from a foreign state dict to ours, one file per family."""

from .official import convert_official_backbone

__all__ = ["convert_official_backbone"]
