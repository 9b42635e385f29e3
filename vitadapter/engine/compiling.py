"""`train.compile`: the backbone of a model through `torch.compile`."""

import os
import shutil

import torch
from torch import nn

__all__ = ["check_compiler", "compile_backbone"]


def check_compiler(device: str) -> None:
    """Refuses to compile where PyTorch could not.

    Args:
        device: of training.

    Raises:
        ValueError: names the C++ compiler that is missing.
    """
    compiler = os.environ.get("CXX", "g++")
    if torch.device(device).type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            "train.compile=True needs a C++ compiler on the CPU, but there is no "
            f"{compiler!r} (the variable CXX may name another)"
        )


def compile_backbone(model: nn.Module, backend: str = "inductor") -> None:
    """Compiles `model.backbone` in place, for images of any size; it keeps its parameters' names.

    Proposals, matching and losses depend on the data, so that they run as they are.

    Args:
        model: a detector or segmenter; copies of it are not compiled.
        backend: of `torch.compile`.

    Raises:
        ValueError: the model has no backbone.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"train.compile=True compiles model.backbone, which {type(model).__name__} lacks"
        )
    backbone.compile(backend=backend, dynamic=True)
