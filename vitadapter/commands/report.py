"""`vitadapter report`: what a run has learned and what it gets wrong, as a page."""

import argparse
import logging
import sys
from collections.abc import Sequence

from vitadapter.commands.arguments import OVERRIDES
from vitadapter.report import write_report

_DESCRIPTION = """\
Writes one folder with a page that opens from disk: the run's settings, losses and metrics over
time, figures of each class, confusions, what each kind of error costs, and a gallery of all test
images that filters by class, kind of error, score and size. Small copies of the images are part of
it, so that the folder can be moved.
"""
_EXAMPLES = """
examples:
  %(prog)s output/COCO/mask_rcnn_vit_adapter_s_deit_1x
  %(prog)s run --output shared/report dataset.test.image_root=images    # the images have moved
"""


def main(arguments: Sequence[str], prog: str = "vitadapter report") -> int:
    """Writes the report of a run.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="output folder of a training or an evaluation")
    parser.add_argument("--output", metavar="FOLDER", help="to write (default: RUN/report)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    args = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        page, notes = write_report(args.run, args.output, args.overrides)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for note in notes:
        print(f"note: {note}")
    print(f"written: {page} (open it in a browser)")
    return 0
