"""What the benchmarks share.

This file makes the folder a regular package: fairscale installs one that is called `benchmarks`
too, which would hide a folder without it.
"""
