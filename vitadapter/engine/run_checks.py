"""Refuses settings of a run that cannot work, before anything is built or written."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitadapter.checkpoint.sharded import check_pytorch
from vitadapter.data.coco import coco_metadata
from vitadapter.engine.channels import apply_channels
from vitadapter.engine.checkpoint import LAST_NAME, check_weights_exist
from vitadapter.engine.run_lock import check_unlocked
from vitadapter.engine.run_report import check_report
from vitadapter.engine.settings import (
    DDP_DEFAULTS,
    Device,
    ImageFormat,
    NotNegativeNumber,
    PositiveInt,
    broken_rule,
    check_settings,
    check_value,
    expand_home,
)
from vitadapter.engine.writers import check_writers

__all__ = [
    "SetupError",
    "check_device",
    "check_micro_batches",
    "check_run",
    "check_same_classes",
    "setup_errors",
]

_ABSENT = object()

# What training builds.
_GROUPS = ("model", "dataloader.train", "optimizer", "lr_multiplier")


class SetupError(ValueError):
    """A mistake that is found before the first iteration, with a message for the user."""


@contextlib.contextmanager
def setup_errors() -> Iterator[None]:
    """Turns errors that the user can correct into a `SetupError`."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise SetupError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except (ValueError, OSError) as error:
        raise SetupError(str(error)) from error


# Settings outside of `train`. Configs with other mappers and optimizers may lack them.
_OTHER_SETTINGS = {
    "dataloader.train.mapper.image_format": ImageFormat,
    "dataloader.test.mapper.image_format": ImageFormat,
    "optimizer.lr": NotNegativeNumber,
    "optimizer.weight_decay": NotNegativeNumber,
}


def check_device(device: str) -> None:
    """Refuses a device that does not exist.

    Raises:
        ValueError: `device` does not name a device, or PyTorch cannot compute on it here.
    """
    check_value("train.device", Device, device)
    kind, index = torch.device(device).type, torch.device(device).index
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"train.device={device} but PyTorch finds no GPU: set train.device=cpu"
            )
        found = torch.cuda.device_count()
        if (index or 0) >= found:
            raise ValueError(
                f"train.device={device} but PyTorch finds {found} GPUs, counted from 0: set "
                "train.device=cuda"
            )
    elif kind != "cpu":
        # Not on GPUs, where each process would take memory of the first one.
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"train.device={device} but PyTorch cannot compute on it: set train.device=cuda or "
                "train.device=cpu"
            ) from error


def _check_groups(cfg: DictConfig, keys: Sequence[str]) -> None:
    """Refuses a config without one of these groups, or with references to missing keys."""
    for key in keys:
        group = OmegaConf.select(cfg, key)
        if not isinstance(group, DictConfig):
            raise ValueError(f"{key} must be a group of keys that can be built, got {group!r}")
    for key in ("train", *keys):
        OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True)


def _check_amp(train: DictConfig) -> None:
    is_half = train.amp.dtype == "float16"
    if train.amp.enabled and is_half and torch.device(train.device).type != "cuda":
        raise ValueError(
            "train.amp.enabled=True with float16 needs a GPU, got "
            f"train.device={train.device}: set train.amp.enabled=False or train.amp.dtype=bfloat16"
        )


def _check_parallel(train: DictConfig) -> None:
    """Refuses what this PyTorch does not have, and arguments of DDP that nothing would use."""
    if train.parallel != "ddp":
        check_pytorch()
    changed = {key: value for key, value in train.ddp.items() if DDP_DEFAULTS.get(key) != value}
    if train.parallel != "ddp" and changed:
        raise ValueError(
            f"train.ddp has arguments of DDP ({changed}), which train.parallel={train.parallel} "
            "does not use: leave them out, or set train.parallel=ddp"
        )


def _check_compile(train: DictConfig) -> None:
    """Compiles a tiny function, so that no work is lost where PyTorch cannot."""
    if not train.compile:
        return
    x = torch.ones(2, device=train.device, requires_grad=True)
    try:
        torch.compile(lambda x: (x + 1).exp())(x).sum().backward()
    except Exception as error:  # of the compiler, whose errors have no class in common
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise ValueError(
            f"train.compile=True, but PyTorch cannot compile for {train.device} here ({reason}): "
            "install a C++ compiler (and Triton for a GPU), or set train.compile=False"
        ) from error


def check_micro_batches(cfg: DictConfig, processes: int) -> None:
    """Refuses a total batch that cannot be divided between processes and accumulated steps.

    Raises:
        ValueError: names the key.
    """
    steps = cfg.train.accumulate_steps
    total = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    if steps > 1 and total is None:
        raise ValueError(
            f"train.accumulate_steps={steps} needs dataloader.train.total_batch_size, got none"
        )
    if total is not None and (broken_rule(PositiveInt, total) or total % (steps * processes)):
        raise ValueError(
            "dataloader.train.total_batch_size must be a positive multiple of "
            f"train.accumulate_steps={steps} x {processes} processes, got {total!r}"
        )


def _check_masks(cfg: DictConfig) -> None:
    """Refuses a mask head without masks, and masks without a mask head."""
    heads = OmegaConf.select(cfg, "model.roi_heads")
    if not isinstance(heads, DictConfig) or heads.get("mask_in_features") is None:
        return
    if heads.get("mask_head", heads.get("mask_heads")) is None:  # cascades have several
        raise ValueError(
            "model.roi_heads.mask_head=null leaves no head for model.roi_heads.mask_in_features="
            f"{heads.mask_in_features}: set that to null too"
        )
    if not OmegaConf.select(cfg, "dataloader.train.mapper.use_instance_mask", default=True):
        raise ValueError(
            "dataloader.train.mapper.use_instance_mask=False (which is "
            "dataloader.train.dataset.masks) leaves the mask head of model.roi_heads without "
            "masks: set it to True, or use a box-only config (faster_rcnn_*, atss_*, gfl_*)"
        )


def _check_best(cfg: DictConfig) -> None:
    metric, patience = cfg.train.best_checkpoint.metric, cfg.train.best_checkpoint.patience
    if metric is not None and cfg.dataloader.get("evaluator") is None:
        raise ValueError(
            f"train.best_checkpoint.metric={metric} needs dataloader.evaluator, got none"
        )
    if patience is not None and metric is None:
        raise ValueError(
            f"train.best_checkpoint.patience={patience} needs a metric that no longer improves: "
            "set train.best_checkpoint.metric=..., such as segm/AP"
        )
    if patience is not None and cfg.train.eval_period == 0:
        raise ValueError(
            f"train.best_checkpoint.patience={patience} counts evaluations, and "
            "train.eval_period=0 evaluates only at the end: set train.eval_period=..."
        )


def _check_pictures(cfg: DictConfig) -> None:
    period = cfg.train.pictures.period
    if period > 0 and cfg.dataloader.get("evaluator") is None:
        raise ValueError(
            f"train.pictures.period={period} counts evaluations and needs dataloader.evaluator, "
            "got none"
        )


def _check_eval_only(cfg: DictConfig) -> None:
    if not cfg.train.init_checkpoint:
        raise ValueError(
            "--eval-only needs weights: set train.init_checkpoint=... "
            f"(for instance {cfg.train.output_dir}/model_final.pth)"
        )
    if cfg.dataloader.get("evaluator") is None:
        raise ValueError("--eval-only needs dataloader.evaluator, got none")


def check_run(cfg: DictConfig, *, resume: bool = False, eval_only: bool = False) -> None:
    """Refuses settings that cannot work or would overwrite a run; builds nothing of it.

    Args:
        cfg: the whole config. Settings that `cfg.train` lacks are filled in, and a leading `~` of
            `train.output_dir` and `train.init_checkpoint` is expanded, both in place.
        resume: whether training continues from the last checkpoint of the output folder.
        eval_only: whether `train.init_checkpoint` is only evaluated.

    Raises:
        ValueError: the message names the override to change.
    """
    check_settings(cfg)
    apply_channels(cfg)
    _check_groups(cfg, ("dataloader.test", "model") if eval_only else _GROUPS)
    for key, kind in _OTHER_SETTINGS.items():
        if (value := OmegaConf.select(cfg, key, default=_ABSENT)) is not _ABSENT:
            check_value(key, kind, value)
    train = cfg.train
    for key in ("output_dir", "init_checkpoint"):
        train[key] = expand_home(train[key] or "")
    check_device(train.device)
    check_report(cfg)
    if eval_only:
        _check_eval_only(cfg)
    else:
        _check_amp(train)
        _check_parallel(train)
        check_micro_batches(cfg, comm.get_world_size())
        _check_masks(cfg)
        _check_best(cfg)
        _check_pictures(cfg)
        check_writers(train.writers)
        check_unlocked(train.output_dir)
    occupied = Path(train.output_dir, LAST_NAME).exists()
    if occupied and not resume and not eval_only:
        raise ValueError(
            f"train.output_dir={train.output_dir} already holds checkpoints: "
            "add --resume to continue that run, or set another train.output_dir=..."
        )
    if train.init_checkpoint and not (occupied and resume):
        check_weights_exist(train.init_checkpoint)
    if not eval_only:
        _check_compile(train)  # last, since it takes seconds


def _class_names(dataset: DictConfig | None) -> list[str]:
    """Class names of a part of `cfg.dataset`; empty if that does not name a COCO data set."""
    if dataset is None or "name" not in dataset:
        return []
    metadata = coco_metadata(dataset.name, dataset.get("json_file"), dataset.get("image_root"))
    return list(metadata.get("thing_classes", ()))


def check_same_classes(cfg: DictConfig) -> None:
    """Refuses training and test data whose classes differ, since AP would be meaningless.

    Args:
        cfg: the whole config, whose data sets can be read.

    Raises:
        ValueError: the message names the overrides to change.
    """
    if cfg.dataloader.get("evaluator") is None:
        return
    parts = ("train", "test")
    train, test = (_class_names(OmegaConf.select(cfg, f"dataset.{part}")) for part in parts)
    if not train or not test or train == test:
        return
    change = "set dataset.train.json_file=... or dataset.test.json_file=... so that they agree"
    if len(train) != len(test):
        raise ValueError(
            f"the training data has {len(train)} classes, the test data {len(test)}: {change}"
        )
    at = next(i for i, pair in enumerate(zip(train, test, strict=True)) if len(set(pair)) > 1)
    raise ValueError(
        f"class {at} is {train[at]!r} in the training data but {test[at]!r} in the test data: "
        f"{change}"
    )
