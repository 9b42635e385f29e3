#!/usr/bin/env python
"""Writes a trained model to a file that runs without its config, as `vitadapter export` does."""

import sys

from vitadapter.commands.export import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="scripts/export.py"))
