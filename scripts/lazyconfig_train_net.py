#!/usr/bin/env python
"""Trains or evaluates a LazyConfig.

Works like Detectron2's script of the same name, which can run the configs too. In addition, it
refuses misspelt overrides, checks the run before the first iteration, and saves a checkpoint
whenever training stops.
"""

if __name__ in ("__main__", "__mp_main__"):
    from vitadapter.engine.signals import exit_on_signals

    exit_on_signals()  # before the other imports, which take seconds

import argparse
import sys
from pathlib import Path

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import OmegaConf
from torch.multiprocessing import ProcessExitedException

from vitadapter.engine.launch import Place, launch
from vitadapter.engine.overrides import load_config
from vitadapter.engine.run_checks import SetupError, check_device, check_run, setup_errors
from vitadapter.engine.trainer import do_eval_only, do_train

EPILOG = """
Examples:
  train on one machine    %(prog)s --config-file CONFIG --num-gpus 8
  or, with torchrun       torchrun --nproc_per_node 8 %(prog)s --config-file CONFIG
  resume after a stop     %(prog)s --config-file CONFIG --num-gpus 8 --resume
  evaluate                %(prog)s --config-file CONFIG --eval-only train.init_checkpoint=W.pth
  published weights       %(prog)s --config-file CONFIG --eval-only \\
      train.init_checkpoint=zoo://COCO/mask_rcnn_vit_adapter_s_deit_3x
  your own data           %(prog)s --config-file CONFIG dataset.num_classes=10 \\
      dataset.train.json_file=train.json dataset.train.image_root=train/ \\
      dataset.test.json_file=val.json dataset.test.image_root=val/

Overrides come last: key=value sets a key that the config has, +key=value adds a key, and ~key
deletes one. On Ctrl-C and SIGTERM, the training state is saved before the run ends.
"""


def main(args: argparse.Namespace, place: Place) -> None:
    """Runs one process of the job."""
    try:
        with setup_errors():
            cfg = load_config(args.config_file, args.opts)
            check_device(OmegaConf.select(cfg, "train.device"))
            place.join(cfg.train.device)
            # do_train checks too, but default_setup would write into the folder of another run.
            check_run(cfg, resume=args.resume, eval_only=args.eval_only)
            default_setup(cfg, args)
        rank = comm.get_rank()
        logger = setup_logger(cfg.train.output_dir, distributed_rank=rank, name="vitadapter")
        logger.info("Results go to %s", cfg.train.output_dir)
        if args.eval_only:
            do_eval_only(cfg)
        else:
            do_train(cfg, resume=args.resume)
    except SetupError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def invoke_main(arguments: list[str] | None = None) -> None:
    """Parses the command line and starts one process per GPU."""
    parser = default_argument_parser(epilog=EPILOG)
    args = parser.parse_args(arguments)
    if not args.config_file:
        parser.error("--config-file is required")
    if not Path(args.config_file).is_file():
        parser.error(f"--config-file {args.config_file} does not exist or is a folder")
    try:
        launch(
            main,
            args,
            num_gpus=args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
        )
    except SetupError as error:
        sys.exit(f"error: {error}")
    except ProcessExitedException as error:  # one of several, which has said why
        code = error.exit_code
        sys.exit(code if code >= 0 else 128 - code)  # a signal has ended it


if __name__ == "__main__":
    invoke_main()
