"""The fixtures of the browser."""

from browser_fixtures import *  # noqa: F403
