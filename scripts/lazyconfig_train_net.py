#!/usr/bin/env python
"""Trains or evaluates a LazyConfig.

Works like Detectron2's script of the same name, which can run the configs too. In addition, it
refuses misspelt overrides, checks the run before the first iteration, and saves a checkpoint
whenever training stops. `vitadapter train` and `vitadapter eval` do the same.
"""

if __name__ in ("__main__", "__mp_main__"):
    from vitadapter.known_warnings import ignore_warnings_at_import

    ignore_warnings_at_import()

    from vitadapter.engine.signals import exit_on_signals

    exit_on_signals()  # before the other imports, which take seconds

from vitadapter.commands.train import script

if __name__ == "__main__":
    script()
