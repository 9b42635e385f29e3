"""Shared bases of the experiments, shipped as ``vitadapter.configs``."""
