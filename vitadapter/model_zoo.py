"""Loads shared configs by name, wherever the package is installed, and experiments by file."""

import importlib.util
from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

import vitadapter.configs

__all__ = ["get_config", "get_config_path", "load_experiment"]


def get_config_path(name: str) -> Path:
    """Path of a shared config: ours or, if we have none of that name, Detectron2's.

    Args:
        name: relative path below ``vitadapter.configs`` or Detectron2's model zoo, such as
            "common/models/mask_rcnn_vit_adapter.py" or "common/models/mask_rcnn_fpn.py".

    Raises:
        ValueError: neither has a config of that name.
    """
    roots = [Path(vitadapter.configs.__file__).parent]
    # Found without importing detectron2.model_zoo, which needs an old setuptools.
    detectron2 = importlib.util.find_spec("detectron2")
    if detectron2 is not None and detectron2.origin is not None:
        roots.append(Path(detectron2.origin).parent / "model_zoo" / "configs")
    for root in roots:
        if (root / name).is_file():
            return root / name
    ours = sorted(str(path.relative_to(roots[0])) for path in roots[0].glob("common/**/*.py"))
    raise ValueError(f"no shared config {name!r}; there are {', '.join(ours)}, and Detectron2's")


def get_config(name: str) -> DictConfig:
    """Loads a shared config afresh, so that edits do not leak between experiments.

    Args:
        name: see ``get_config_path``.

    Raises:
        ValueError: there is no such config.
    """
    return LazyConfig.load(str(get_config_path(name)))


def load_experiment(config_file: str | Path) -> DictConfig:
    """Loads a config file, and derives from its name where the results go.

    A config that leaves `train.output_dir` at the default "./output" writes to
    ./output/<folder>/<name> of its file, such as ./output/COCO/mask_rcnn_vit_adapter_s_deit_1x.

    Args:
        config_file: an experiment, such as those of projects/ViTAdapter/configs.

    Raises:
        ValueError: the file defines no keys.
    """
    cfg = LazyConfig.load(str(config_file))
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"--config-file {config_file} must define keys such as model and train")
    default = get_config("common/train.py").train.output_dir
    if OmegaConf.select(cfg, "train.output_dir") == default:
        path = Path(config_file).resolve()
        cfg.train.output_dir = f"{default}/{path.parent.name}/{path.stem}"
    return cfg
