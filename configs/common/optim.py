"""AdamW with the official recipes' weight-decay rules."""

import torch
from detectron2.config import LazyCall as L

from vitadapter.solver import NoDecayByName, get_optimizer_params

AdamW = L(torch.optim.AdamW)(
    # params.model is set by the training loop.
    params=L(get_optimizer_params)(
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        no_decay=L(NoDecayByName)(),
        lr_factor_func=None,
    ),
    lr=1e-4,
    weight_decay=0.05,
)
