#!/usr/bin/env python
"""Converts a checkpoint to this project's names, as `vitadapter convert` does."""

import sys

from vitadapter.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
