"""The experiments, one file for each trained model; shipped as ``vitadapter.experiments``."""
