"""A tiny run, its data, and what a run changes in the process put back."""

from run_fixtures import (
    cfg,
    default_signals,
    one_thread,
    overrides,
    restored_logging,
    tiny_config,
)

__all__ = [
    "cfg",
    "default_signals",
    "one_thread",
    "overrides",
    "restored_logging",
    "tiny_config",
]
