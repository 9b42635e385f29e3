#!/usr/bin/env python
"""Writes AP by class and size of a finished evaluation, as `vitadapter analyze` does."""

import sys

from vitadapter.commands.analyze import main

if __name__ == "__main__":
    sys.exit(main())
