"""How commands report the mistakes of their users."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vitadapter.engine.run_checks import SetupError, setup_errors

__all__ = ["exit_on_errors"]


@contextmanager
def exit_on_errors() -> Iterator[None]:
    """Ends the process with the message of an error that the user can correct."""
    try:
        with setup_errors():
            yield
    except SetupError as error:
        sys.exit(f"error: {error}")
