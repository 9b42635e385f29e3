"""Measuring code of the benchmark scripts."""
