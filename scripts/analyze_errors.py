#!/usr/bin/env python
"""Writes what each kind of error costs detectors, as `vitadapter analyze-errors` does."""

import sys

from vitadapter.commands.analyze_errors import main

if __name__ == "__main__":
    sys.exit(main())
