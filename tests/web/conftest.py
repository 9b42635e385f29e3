"""The fixtures of whole runs, as for the engine, and of the browser."""

from browser_fixtures import *  # noqa: F403
from run_fixtures import *  # noqa: F403
