"""`vitadapter train` and `vitadapter eval`, and what `scripts/lazyconfig_train_net.py` runs."""

import argparse
import signal
import sys
from collections.abc import Sequence

from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from omegaconf import OmegaConf
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from vitadapter.commands.arguments import (
    OVERRIDES,
    WEIGHTS_OR_EXPORTED,
    check_exported_overrides,
    command_parser,
    weights_of,
)
from vitadapter.engine.checkpoint_config import is_checkpoint
from vitadapter.engine.failures import LostProcessError, OtherProcessError, tell_of_failures
from vitadapter.engine.launch import Place, launch
from vitadapter.engine.overrides import load_config
from vitadapter.engine.run_checks import SetupError, check_device, setup_errors
from vitadapter.engine.settings import check_settings
from vitadapter.engine.trainer import do_eval_only, do_train
from vitadapter.export.evaluation import evaluate_file
from vitadapter.export.formats import is_exported
from vitadapter.model_zoo import config_file

__all__ = ["evaluate", "script", "train"]

_TRAIN_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --num-gpus 8
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --num-gpus 8 --resume
  torchrun --nproc_per_node 8 -m %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x
  %(prog)s COCO/mask_rcnn_vit_adapter_s_dinov2_finetune dataset.root=DIR
  %(prog)s my_config.py train.init_checkpoint=zoo://COCO/mask_rcnn_vit_adapter_s_deit_3x

On Ctrl-C and SIGTERM, the training state is saved before the run ends.
"""

_EVAL_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x              # the published weights
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --weights output/model_final.pth
  %(prog)s output/model_final.pth train.device=cpu           # a checkpoint carries its config
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_1x --weights detector.onnx    # an exported file
"""

_SCRIPT_EXAMPLES = """
Examples:
  train on one machine    %(prog)s --config-file CONFIG --num-gpus 8
  or, with torchrun       torchrun --nproc_per_node 8 %(prog)s --config-file CONFIG
  resume after a stop     %(prog)s --config-file CONFIG --num-gpus 8 --resume
  evaluate                %(prog)s --config-file CONFIG --eval-only train.init_checkpoint=W.pth
  an exported file        %(prog)s --config-file CONFIG --eval-only train.init_checkpoint=W.onnx
  published weights       %(prog)s --config-file CONFIG --eval-only \\
      train.init_checkpoint=zoo://COCO/mask_rcnn_vit_adapter_s_deit_3x
  your own data           %(prog)s --config-file CONFIG dataset.root=DIR

Overrides come last: key=value sets a key that the config has, +key=value adds a key, and ~key
deletes one. On Ctrl-C and SIGTERM, the training state is saved before the run ends.
"""


def run(args: argparse.Namespace, place: Place) -> None:
    """Runs one process of the job.

    Args:
        args: with `config_file`, `opts` (overrides), `resume` and `eval_only`.
        place: of this process among those of the job.
    """
    try:
        with tell_of_failures(), setup_errors():
            cfg = load_config(args.config_file, args.opts)
            from_file = is_exported(cfg.train.init_checkpoint or "")
            if from_file and not args.eval_only:
                raise ValueError(
                    "an exported file can be evaluated, but not trained: set train.init_checkpoint "
                    f"to a checkpoint, got {cfg.train.init_checkpoint}"
                )
            if from_file:
                check_exported_overrides(args.opts)
            check_device(OmegaConf.select(cfg, "train.device"))
            place.join(cfg.train.device)
            check_settings(cfg)
            seed = cfg.train.seed
            # PyTorch's own seed is the same at each start.
            seed_all_rng(None if seed < 0 else seed + comm.get_rank())
        with tell_of_failures():
            if from_file:
                evaluate_file(cfg)
            elif args.eval_only:
                do_eval_only(cfg)
            else:
                do_train(cfg, resume=args.resume)
    except (SetupError, LostProcessError) as error:
        sys.exit(f"error: {error}")
    except OtherProcessError as error:  # which shows its traceback itself
        sys.exit(f"error: {str(error).splitlines()[0]}")
    except KeyboardInterrupt:
        sys.exit(130)


def _launch(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Starts one process per GPU."""
    try:
        if not is_checkpoint(args.config_file):
            args.config_file = str(config_file(args.config_file))
    except ValueError as error:
        parser.error(str(error))
    try:
        launch(
            run,
            args,
            num_gpus=args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
        )
    except SetupError as error:
        sys.exit(f"error: {error}")
    except ProcessRaisedException as error:
        sys.exit(f"error: {str(error).strip()}")
    except ProcessExitedException as error:
        code = error.exit_code
        if code >= 0:  # it has said why
            sys.exit(code)
        print(
            f"error: process {error.error_index} of this machine was ended by {error.signal_name}"
            f"{' (as the system does when memory runs out)' if code == -signal.SIGKILL else ''}",
            file=sys.stderr,
        )
        sys.exit(128 - code)


def script(arguments: Sequence[str] | None = None) -> None:
    """Trains or evaluates with the options of Detectron2's script of the same name.

    Args:
        arguments: of the command line; None for those of the process.
    """
    parser = default_argument_parser(epilog=_SCRIPT_EXAMPLES)
    args = parser.parse_args(arguments)
    if not args.config_file:
        parser.error("--config-file is required")
    _launch(parser, args)


def _parser(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, description, examples)
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of each machine")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0")
    parser.add_argument(
        "--dist-url", default="auto", help="where the machines meet: tcp://FIRST_MACHINE:PORT"
    )
    parser.add_argument("opts", metavar="key=value", nargs="*", default=[], help=OVERRIDES)
    return parser


def train(arguments: Sequence[str], prog: str = "vitadapter train") -> None:
    """Trains a config.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.
    """
    parser = _parser(prog, "Trains a config and evaluates it.", _TRAIN_EXAMPLES)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    args = parser.parse_intermixed_args(arguments)
    args.eval_only = False
    _launch(parser, args)


def evaluate(arguments: Sequence[str], prog: str = "vitadapter eval") -> None:
    """Evaluates weights on the test set of a config.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.
    """
    parser = _parser(prog, "Evaluates weights on the test set of a config.", _EVAL_EXAMPLES)
    parser.add_argument("--weights", default="zoo", help=f"{WEIGHTS_OR_EXPORTED} (default: zoo)")
    args = parser.parse_intermixed_args(arguments)
    args.resume, args.eval_only = False, True
    try:
        weights = weights_of(args.config_file, args.weights, args.opts)
        args.opts.append(f"train.init_checkpoint={weights}")
    except ValueError as error:
        parser.error(str(error))
    _launch(parser, args)
