#!/usr/bin/env python
"""Prints parameters and FLOPs of a config's model, as `vitadapter analyze-model` does."""

import sys

from vitadapter.commands.analyze_model import script

if __name__ == "__main__":
    sys.exit(script())
