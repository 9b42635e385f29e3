"""The evaluators that configs name."""
