#!/usr/bin/env python
"""Draws the predictions of any LazyConfig on images and videos, as `vitadapter predict` does."""

import sys

from vitadapter.commands.predict import script

if __name__ == "__main__":
    sys.exit(script())
