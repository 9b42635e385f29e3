"""ViT-Adapter for Detectron2: dense prediction on plain vision transformers."""

__version__ = "0.2.0"
