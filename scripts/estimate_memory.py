#!/usr/bin/env python
"""Predicts the memory of training and inference, as `vitadapter estimate-memory` does."""

import sys

from vitadapter.commands.estimate_memory import script

if __name__ == "__main__":
    sys.exit(script())
