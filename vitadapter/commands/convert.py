"""Converts a checkpoint of another project to this project's names.

Our own training and evaluation convert checkpoints themselves (train.init_checkpoint=...). Use this
script for programs that do not, such as Detectron2's own tools/lazyconfig_train_net.py. They need

  %(prog)s IN OUT.pth --config-file CONFIG

with which OUT has the names and sizes of the whole model of CONFIG, so that they can use it as
train.init_checkpoint. Without CONFIG, names are those of the net alone and sizes those of IN; where
a family goes into nets of several classes, they are the names of the one that README.md calls ViT.

A model that was trained with LoRA becomes a plain one, for the config without LoRA, by

  %(prog)s output/model_final.pth OUT.pth --config-file output/config.yaml --merge-lora

A run with train.parallel=fsdp2 saves folders. The single file that another run would have saved,
with the state of training and the config, or its weights alone, are written by

  %(prog)s output/model_final.dcp OUT.pth
  %(prog)s output/model_final.dcp OUT.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from vitadapter.checkpoint import (
    FAMILIES,
    Family,
    LoadReport,
    check_plan,
    fetch,
    find_family,
    plan_load,
    read_state_dict,
    recognise,
)
from vitadapter.checkpoint.fitting import check_dense, check_finite
from vitadapter.checkpoint.reading import StateDict, read_checkpoint_file
from vitadapter.checkpoint.sharded import is_sharded
from vitadapter.commands.arguments import CONFIG
from vitadapter.engine.building import build
from vitadapter.engine.overrides import load_config
from vitadapter.engine.run_checks import setup_errors
from vitadapter.model_zoo import config_file
from vitadapter.modeling.backbone import merge_lora

SUFFIXES = (".pth", ".safetensors")


def parse_args(
    arguments: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "input", help="file, folder of a sharded checkpoint, URL, hf://org/repo/file or timm://name"
    )
    parser.add_argument(
        "output", type=Path, help=f"file to write, which ends in {' or '.join(SUFFIXES)}"
    )
    parser.add_argument(
        "--family",
        default="auto",
        choices=["auto", *(family.name for family in FAMILIES)],
        help="default: recognised from the tensors' names",
    )
    parser.add_argument(
        "--config-file", metavar="CONFIG", help=f"whose model OUT is converted for: {CONFIG}"
    )
    parser.add_argument(
        "--merge-lora",
        action="store_true",
        help="add LoRA's updates to the weights; IN must have the whole model of CONFIG",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="change the config; must come last",
    )
    args = parser.parse_intermixed_args(arguments)
    if args.config_file is None and args.overrides:
        parser.error(f"{' '.join(args.overrides)} would change a config: add --config-file")
    if args.config_file is None and args.merge_lora:
        parser.error("--merge-lora needs the config that the model was trained with: --config-file")
    if args.config_file is not None:
        try:
            args.config_file = str(config_file(args.config_file))
        except ValueError as error:
            parser.error(f"--config-file {error}")
    if args.output.suffix not in SUFFIXES:
        parser.error(f"output must end in {' or '.join(SUFFIXES)}, got {args.output}")
    if args.output.is_dir():
        parser.error(f"output must be a file, but {args.output} is a folder")
    if args.output.exists() and not args.overwrite:
        parser.error(f"{args.output} exists: add --overwrite to replace it")
    if not args.output.absolute().parent.is_dir():
        parser.error(f"the folder of {args.output} does not exist")
    return args


def save(content: dict[str, object], path: Path) -> None:
    """Writes aside and renames, so that the file is whole or absent.

    Args:
        content: of a checkpoint, whose tensors share no memory; of `.safetensors`, its weights
            only.
        path: the file.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        if path.suffix == ".safetensors":
            weights = cast(dict[str, Tensor], content["model"])
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial)
        else:
            torch.save(content, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def convert(args: argparse.Namespace) -> tuple[LoadReport, str]:
    """The report that has the tensors, and what their names are relative to."""
    state_dict = read_state_dict(fetch(args.input))
    families = FAMILIES if args.family == "auto" else [find_family(args.family)]
    if args.config_file is not None:
        return convert_for_config(args, state_dict, families), "model"
    check_dense(state_dict, allow_meta=False)
    family = recognise(state_dict, families)
    conversion = family.convert(state_dict)
    check_finite(conversion.tensors)
    # What is implied is only known where there is a net.
    fields = vars(conversion) | {"implied": {}}
    report = LoadReport(**fields, source=args.input, family=family.name)
    return report, conversion.scope


def convert_for_config(
    args: argparse.Namespace, state_dict: StateDict, families: Sequence[Family]
) -> LoadReport:
    """As `train.init_checkpoint` converts it for the config's model."""
    with setup_errors():
        cfg = load_config(args.config_file, args.overrides)
        model = build(cfg.get("model"), "model")
        if not isinstance(model, nn.Module):
            raise ValueError(f"--config-file {args.config_file} must define model, got {model!r}")
    plan = plan_load(model, state_dict, args.input, families=families)
    if plan.net_path is None:
        raise ValueError(
            f"the model of --config-file {args.config_file} must have a ViTAdapter, ViTBaseline or "
            f"SimpleFeaturePyramid over a plain ViT, got a {type(model).__name__} without one"
        )
    allow_partial = OmegaConf.select(cfg, "train.init_allow_partial", default=False)
    check_plan(plan, model, complete=args.merge_lora, allow_partial=allow_partial)
    if args.merge_lora:
        plan.apply(model)
        if (merged := merge_lora(model)) is model:
            raise ValueError(
                f"--merge-lora needs a model with LoRA, but --config-file {args.config_file} has "
                "none in the tuning of its net"
            )
        return replace(plan.report, tensors=merged.state_dict())
    return plan.report


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Converts a checkpoint.

    Args:
        arguments: of the command line; None for those of the process.
        prog: name of the command in messages.

    Returns:
        The exit status.
    """
    args = parse_args(arguments, prog)
    is_gathered = is_sharded(Path(args.input)) and args.output.suffix == ".pth"
    is_gathered &= args.family == "auto" and args.config_file is None
    try:
        if is_gathered:
            content = read_checkpoint_file(args.input)
            said = f"all of {args.input} is in {args.output}"
        else:
            report, scope = convert(args)
            # Own memory for each: views would take their whole storage with them, and safetensors
            # refuses shared storage.
            tensors = {name: tensor.clone() for name, tensor in report.tensors.items()}
            content = {"model": tensors}
            said = f"{report.summary()}\nnames are those of the {scope}, written to {args.output}"
    except (ValueError, LookupError, RuntimeError) as error:  # the latter come of odd shapes
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        save(content, args.output)
    except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch's is a RuntimeError
        print(f"error: {args.output} cannot be written: {error}", file=sys.stderr)
        return 1
    print(said)
    return 0
