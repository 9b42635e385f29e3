"""A tiny run, its data, and what a run changes in the process put back."""

from run_fixtures import *  # noqa: F403
