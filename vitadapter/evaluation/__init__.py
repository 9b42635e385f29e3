"""Evaluators as configs name them."""
