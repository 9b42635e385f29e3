#!/usr/bin/env python
"""Makes the sample data set, as `vitadapter data sample` does."""

import sys

from vitadapter.commands.data import sample

if __name__ == "__main__":
    sys.exit(sample())
