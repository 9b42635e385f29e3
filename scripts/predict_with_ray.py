#!/usr/bin/env python
"""Predicts as `vitadapter predict` does, by actors of Ray on this machine or a cluster."""

import sys

from vitadapter.commands.predict_with_ray import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
