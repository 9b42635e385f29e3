#!/usr/bin/env python
"""Draws feature maps and their spectra, as `vitadapter analyze-features` does."""

import sys

from vitadapter.commands.analyze_features import main

if __name__ == "__main__":
    sys.exit(main())
