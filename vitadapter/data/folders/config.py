"""`dataset.root=DIR` of a config: what it stands for is set before anything is built."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from omegaconf import DictConfig, ListConfig, OmegaConf

from vitadapter.data.folders.check import check_once
from vitadapter.data.folders.prepare import LabelSettings, prepare
from vitadapter.data.folders.splits import FolderSettings

__all__ = ["resolve_root"]

logger = logging.getLogger(__name__)


def _kind(cfg: DictConfig) -> str:
    train = OmegaConf.select(cfg, "dataset.train")
    if not isinstance(train, DictConfig) or not {"json_file", "label_root"} & set(train):
        raise ValueError(
            "dataset.root needs a config whose dataset.train has json_file or label_root, as "
            "those of configs/common/data"
        )
    if "label_root" in train:
        return "semantic"
    return "panoptic" if "panoptic_root" in train else "instances"


def _settings(cfg: DictConfig) -> FolderSettings:
    given = cfg.dataset.exclude
    exclude = tuple(given) if isinstance(given, ListConfig) else (given,)
    return FolderSettings(exclude, cfg.dataset.unlabelled, **cfg.dataset.split)


@contextmanager
def _audible() -> Iterator[None]:
    """Shows what is logged here: configs are read before a script sets up its logging."""
    package = logging.getLogger("vitadapter")
    if package.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(sys.stdout), package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)


def _given(overrides: Sequence[str], key: str) -> bool:
    """Whether one of the overrides sets a key, or a group that it is in."""
    names = (text.partition("=")[0].lstrip("+") for text in overrides)
    return any(name == key or key.startswith(f"{name}.") for name in names)


def resolve_root(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """Sets in place what follows from `dataset.root`: files, folders and numbers of classes.

    `dataset.root` is null afterwards, and the config that a run saves names what was trained on.

    Args:
        cfg: a whole config; one without `dataset.root` stays as it is.
        overrides: that have been applied to it.

    Raises:
        ValueError: the folder cannot be trained on, or an override contradicts it.
    """
    root = OmegaConf.select(cfg, "dataset.root")
    if root is not None:
        with _audible():
            _resolve(cfg, str(root), overrides)
        cfg.dataset.root = None
    return cfg


def _resolve(cfg: DictConfig, root: str, overrides: Sequence[str]) -> None:
    labels = LabelSettings()
    kind = _kind(cfg)
    if kind == "semantic":
        # The data sets of the config's own name may be shifted, others seldom are.
        shifted = _given(overrides, "dataset.reduce_zero_label") and cfg.dataset.reduce_zero_label
        labels = LabelSettings(cfg.dataset.ignore_label, bool(shifted))
    check = partial(check_once, labels=labels) if cfg.dataset.check else None
    prepared = prepare(root, kind, _settings(cfg), labels, check)
    for key, value in prepared.values.items():
        before = OmegaConf.select(cfg, key)
        if _given(overrides, key) and before not in (None, value):
            raise ValueError(
                f"dataset.root={root} has {key}={value}, but the override says {before}: leave "
                "one of the two out"
            )
        OmegaConf.update(cfg, key, value)
        logger.info("dataset.root sets %s=%s", key, value)
    for role in ("train", "test"):
        cfg.dataset[role].name = f"{prepared.root.resolve().name}_{role}"
