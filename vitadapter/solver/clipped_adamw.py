"""AdamW that bounds the gradient before each step."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["ClippedAdamW"]


class ClippedAdamW(torch.optim.AdamW):
    """AdamW after the norm of all gradients together is brought down to `max_norm`.

    Under a gradient scaler the gradients are unscaled by the time of the step, so that the bound
    holds for them as they are.

    Args:
        params, lr, betas, eps, weight_decay: as AdamW's.
        max_norm: bound of the Euclidean norm.

    Raises:
        ValueError: `max_norm` is not positive.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, object]],
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

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """As AdamW's; a `closure` is evaluated before its gradients are clipped."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        super().step()
        return loss
