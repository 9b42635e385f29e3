"""Settings of a run that cannot work, refused before anything is built or written."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitadapter.engine.checkpoint import LAST_NAME, check_weights_exist, expand_home
from vitadapter.engine.run_lock import check_unlocked

__all__ = ["AMP_DTYPES", "IMAGE_FORMATS", "SetupError", "check_device", "check_run", "setup_errors"]

_ABSENT = object()
IMAGE_FORMATS = ("RGB", "BGR")
AMP_DTYPES = ("float16", "bfloat16")

# What training builds.
_GROUPS = ("model", "dataloader.train", "optimizer", "lr_multiplier")


class SetupError(ValueError):
    """What cannot work, found before the first iteration; its message is meant for the user."""


@contextlib.contextmanager
def setup_errors() -> Iterator[None]:
    """Marks what the user can mend, among the errors from inside, as errors of the set-up."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise SetupError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except (ValueError, OSError) as error:
        raise SetupError(str(error)) from error


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return _is_int(value) and value >= 1


def _is_not_negative(value: object) -> bool:
    return _is_int(value) and value >= 0


def _is_positive_or_null(value: object) -> bool:
    return value is None or _is_positive(value)


def _is_seed(value: object) -> bool:
    return _is_int(value) and -1 <= value < 2**31  # of which NumPy takes the double


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive_number(value: object) -> bool:
    return _is_number(value) and 0 < value < float("inf")


def _is_not_negative_number(value: object) -> bool:
    return _is_number(value) and 0 <= value < float("inf")


def _is_decay(value: object) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_folder(value: object) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    path = Path(expand_home(value))
    return path.is_dir() or not path.exists()


def _is_text_or_null(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_metric(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip() != "")


def _is_device(value: object) -> bool:
    try:
        torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return isinstance(value, str)


# Key, whether it may be absent, what its value must fulfil, and that in words.
_CHECKS: tuple[tuple[str, bool, Callable[[object], bool], str], ...] = (
    ("dataloader.train.mapper.image_format", True, IMAGE_FORMATS.__contains__, "be RGB or BGR"),
    ("dataloader.test.mapper.image_format", True, IMAGE_FORMATS.__contains__, "be RGB or BGR"),
    ("train.output_dir", False, _is_folder, "name a folder"),
    ("train.init_checkpoint", False, _is_text_or_null, "be a file, a URL or ''"),
    ("train.init_allow_partial", True, _is_bool, "be True or False"),
    ("train.device", False, _is_device, "be a device such as cuda, cuda:1 or cpu"),
    ("train.max_iter", False, _is_positive, "be a positive integer"),
    ("train.log_period", False, _is_positive, "be a positive integer"),
    ("train.eval_period", False, _is_not_negative, "be 0 or a positive integer"),
    ("train.checkpointer.period", False, _is_positive, "be a positive integer"),
    (
        "train.checkpointer.max_to_keep",
        True,
        _is_positive_or_null,
        "be a positive integer, or null to keep all",
    ),
    ("train.seed", True, _is_seed, "be an integer below 2**31 (-1 for a random one)"),
    ("train.accumulate_steps", True, _is_positive, "be a positive integer"),
    ("optimizer.lr", True, _is_not_negative_number, "be 0 or a positive number"),
    ("optimizer.weight_decay", True, _is_not_negative_number, "be 0 or a positive number"),
    ("train.amp.enabled", False, _is_bool, "be True or False"),
    ("train.amp.dtype", True, AMP_DTYPES.__contains__, "be float16 or bfloat16"),
    ("train.amp.init_scale", True, _is_positive_number, "be a positive number"),
    ("train.ema.enabled", True, _is_bool, "be True or False"),
    ("train.ema.decay", True, _is_decay, "be a number from 0 to below 1"),
    ("train.ema.ramp_iters", True, _is_not_negative, "be 0 or a positive integer"),
    (
        "train.best_checkpoint.metric",
        True,
        _is_metric,
        "name a value of the evaluation such as segm/AP, or be null",
    ),
    ("train.best_checkpoint.mode", True, ("max", "min").__contains__, "be max or min"),
)


def check_device(device: str) -> None:
    """Refuses a device that is not there.

    Raises:
        ValueError: not a device, or one that PyTorch cannot compute on here.
    """
    if not _is_device(device):
        raise ValueError(f"train.device must be a device such as cuda or cpu, got {device!r}")
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
        # Not asked of GPUs, where it would take memory of the first one in each process.
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"train.device={device} but PyTorch cannot compute on it: set train.device=cuda or "
                "train.device=cpu"
            ) from error


def _check_groups(cfg: DictConfig, keys: Sequence[str]) -> None:
    """Refuses a config that lacks something, or refers to what is not there."""
    for key in keys:
        group = OmegaConf.select(cfg, key)
        if not isinstance(group, DictConfig):
            raise ValueError(f"{key} must be a group of keys that can be built, got {group!r}")
    for key in ("train", *keys):
        OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True)


def _check_amp(train: DictConfig) -> None:
    is_half = train.amp.get("dtype", "float16") == "float16"
    if train.amp.enabled and is_half and torch.device(train.device).type != "cuda":
        raise ValueError(
            "train.amp.enabled=True with float16 needs a GPU, got "
            f"train.device={train.device}: set train.amp.enabled=False or train.amp.dtype=bfloat16"
        )


def _check_micro_batches(cfg: DictConfig) -> None:
    steps, processes = cfg.train.get("accumulate_steps", 1), comm.get_world_size()
    total = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    if steps > 1 and total is None:
        raise ValueError(
            f"train.accumulate_steps={steps} needs dataloader.train.total_batch_size, got none"
        )
    if total is not None and (not _is_positive(total) or total % (steps * processes)):
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
    metric = OmegaConf.select(cfg, "train.best_checkpoint.metric")
    if metric is not None and cfg.dataloader.get("evaluator") is None:
        raise ValueError(
            f"train.best_checkpoint.metric={metric} needs dataloader.evaluator, got none"
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
    """Refuses settings that cannot work or would overwrite a run; builds and writes no file.

    Args:
        cfg: the whole config, of which `cfg.train` is looked at. A `~` that begins
            `train.output_dir` or `train.init_checkpoint` is expanded in place.
        resume: whether training goes on from the last checkpoint of the output folder.
        eval_only: whether `train.init_checkpoint` is only evaluated.

    Raises:
        ValueError: the message names the override to change.
    """
    _check_groups(cfg, ("dataloader.test", "model") if eval_only else _GROUPS)
    for key, optional, is_valid, rule in _CHECKS:
        value = OmegaConf.select(cfg, key, default=_ABSENT)
        if value is _ABSENT and not optional:
            raise ValueError(f"{key} must {rule}, but the config has no such key")
        if value is not _ABSENT and not is_valid(value):
            raise ValueError(f"{key} must {rule}, got {value!r}")
    train = cfg.train
    for key in ("output_dir", "init_checkpoint"):
        train[key] = expand_home(train[key] or "")
    check_device(train.device)
    if eval_only:
        _check_eval_only(cfg)
    else:
        _check_amp(train)
        _check_micro_batches(cfg)
        _check_masks(cfg)
        _check_best(cfg)
        check_unlocked(train.output_dir)
    occupied = Path(train.output_dir, LAST_NAME).exists()
    if occupied and not resume and not eval_only:
        raise ValueError(
            f"train.output_dir={train.output_dir} already holds checkpoints: "
            "add --resume to continue that run, or set another train.output_dir=..."
        )
    if train.init_checkpoint and not (occupied and resume):
        check_weights_exist(train.init_checkpoint)
