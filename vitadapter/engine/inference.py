"""How a trained model is run: batches, precision and test-time augmentation."""

import copy
from collections.abc import Sequence

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitadapter.engine.building import build
from vitadapter.engine.run_checks import AMP_DTYPES
from vitadapter.modeling.same_size_batches import predict_by_size

__all__ = ["InferenceModel", "build_inference"]


class InferenceModel(nn.Module):
    """Wraps a model for evaluation and prediction; `train.inference` of a config.

    Results do not depend on which images share a batch, see
    :mod:`vitadapter.modeling.same_size_batches`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        amp_dtype: str | None = None,
        tta: nn.Module | None = None,
    ) -> None:
        """
        Args:
            model: takes and gives Detectron2's standard format; has a `backbone`.
            amp_dtype: "float16" or "bfloat16" for mixed precision, None for the model's own.
            tta: the same model wrapped for test-time augmentation, such as
                :class:`~vitadapter.modeling.test_time_augmentation.DetectorWithTTA`; None for
                none.

        Raises:
            ValueError: another `amp_dtype`, or a `tta` that is no module.
        """
        super().__init__()
        if amp_dtype is not None and amp_dtype not in AMP_DTYPES:
            raise ValueError(f"amp_dtype must be one of {AMP_DTYPES} or None, got {amp_dtype!r}")
        if tta is not None and not isinstance(tta, nn.Module):
            raise ValueError(
                "train.inference.tta is a module around the model, which a config file sets: "
                "train.inference.tta = get_config('common/tta.py').multi_scale_flip (or "
                f"common/sem_seg_tta.py for segmenters), got {tta!r}"
            )
        self.model = model
        self.tta = tta
        self.amp_dtype = amp_dtype
        # What evaluates a model restores the mode that it found.
        self.train(model.training)

    def forward(self, batched_inputs: Sequence[dict[str, object]]) -> list[dict[str, object]]:
        """Outputs for any number of images of any sizes, in order."""
        device = next(self.model.parameters()).device
        dtype = None if self.amp_dtype is None else getattr(torch, self.amp_dtype)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            if self.tta is not None:
                return self.tta(batched_inputs)
            divisor = self.model.backbone.size_divisibility
            return predict_by_size(self.model, batched_inputs, divisor)


def build_inference(cfg: DictConfig, model: nn.Module) -> InferenceModel:
    """Wraps `model` as `train.inference` of the config says; plainly where it says nothing.

    Args:
        cfg: the whole config.
        model: on its device, possibly distributed.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    inference = OmegaConf.select(cfg, "train.inference")
    if inference is None:
        return InferenceModel(model)
    inference = copy.deepcopy(inference)
    inference.model = model  # to which `tta.model` refers
    built = build(inference, "train.inference")
    if not isinstance(built, nn.Module):
        raise ValueError(f"train.inference must build a module, got {built!r}")
    return built
