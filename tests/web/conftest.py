"""The fixtures of whole runs, as for the engine."""

from run_fixtures import *  # noqa: F403
