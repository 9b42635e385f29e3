"""Which values of a checkpoint may go into a model."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["check_dense", "check_finite", "check_type", "count_non_finite"]


def check_dense(tensors: Mapping[str, Tensor], *, allow_meta: bool) -> None:
    """Refuses tensors whose values are not there one by one.

    Args:
        tensors: by name.
        allow_meta: whether they may be without values, as for a model that is.

    Raises:
        ValueError: one is sparse, quantised, nested or without values.
    """
    for name, tensor in tensors.items():
        kinds = {
            "sparse": tensor.layout != torch.strided,
            "quantised": tensor.is_quantized,
            "nested": tensor.is_nested,
            "without values": tensor.is_meta and not allow_meta,
        }
        for kind, is_so in kinds.items():
            if is_so:
                raise ValueError(f"{name} is {kind}, dense tensors are needed")


def check_type(name: str, tensor: Tensor, wanted: Tensor) -> None:
    """Refuses numbers of another kind; those of another precision can be copied.

    Args:
        name: for the message.
        tensor: of the file.
        wanted: of the model.

    Raises:
        ValueError: complex numbers, codes of a quantised model, or fractions instead of counts.
    """
    message = f"{name} is {tensor.dtype}, the model has {wanted.dtype}"
    if tensor.is_complex() or (wanted.is_floating_point() and not tensor.is_floating_point()):
        raise ValueError(message)
    if tensor.is_meta or tensor.dtype == wanted.dtype or wanted.is_floating_point():
        return
    if not torch.equal(tensor.to(wanted.dtype).to(tensor.dtype), tensor):
        raise ValueError(f"{message}, which cannot hold its values")


def count_non_finite(tensor: Tensor) -> int:
    """Number of values that are NaN or infinite; quick where there are none."""
    if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return 0
    if tensor.dtype.itemsize == 1:  # has no minimum
        tensor = tensor.float()
    # One pass without a mask, in which NaN is both the least and the greatest.
    if all(bound.isfinite() for bound in tensor.aminmax()):
        return 0
    return int((~tensor.isfinite()).sum())


def check_finite(tensors: Mapping[str, Tensor], model: Mapping[str, Tensor] | None = None) -> None:
    """Refuses values that are NaN or infinite.

    Args:
        tensors: by name.
        model: state dict that they go into: then they are checked as they will be there, after
            rounding to its precision, and entries that are not finite in it need not be.

    Raises:
        ValueError: names and numbers of such values.
    """
    found = []
    for name, tensor in tensors.items():
        wanted = None if model is None else model[name]
        count = count_non_finite(tensor if wanted is None else tensor.to(wanted.dtype))
        if count and (wanted is None or not count_non_finite(wanted)):
            found.append(f"{name} ({count} of {tensor.numel()})")
    if found:
        rounded = "" if model is None else ", in the model's precision"
        raise ValueError(
            f"{len(found)} of its tensors have values that are NaN or infinite{rounded}: "
            f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        )
