"""Checkpoints of the official ViT-Adapter release: backbones, and whole models."""
