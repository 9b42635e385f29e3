"""The official ViT-Adapter release: its backbones, and whole models with their necks and heads."""
