"""ViT-Adapter for Detectron2: dense prediction on plain vision transformers."""

__version__ = "0.1.0"
