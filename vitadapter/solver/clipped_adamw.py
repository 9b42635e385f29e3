"""AdamW that clips the gradient before each step."""

from collections.abc import Callable
from typing import overload

import torch
from torch.optim.optimizer import ParamsT

from vitadapter.solver.gradient_norm import clip_norm

__all__ = ["ClippedAdamW"]


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that first clips the norm of all gradients together to `max_norm`.

    A gradient scaler unscales the gradients before the step, so that the bound applies to their
    true values.

    Args:
        params, lr, betas, eps, weight_decay: as for AdamW.
        max_norm: upper bound of the Euclidean norm.

    Raises:
        ValueError: `max_norm` is not positive.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        max_norm: float,
    ) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.max_norm = max_norm

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Does a step of AdamW; the gradients of a `closure` are clipped, too."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clip_norm((p for group in self.param_groups for p in group["params"]), self.max_norm)
        super().step()
        return loss
