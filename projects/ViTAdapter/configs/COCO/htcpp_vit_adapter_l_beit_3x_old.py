"""The model of the first release, which adds each stage's features to its own level."""

from .htcpp_vit_adapter_l_beit_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

_adapter = model.backbone.bottom_up.bottom_up
_adapter.vit_feature = "stage"
_adapter.net.drop_path_rate = 0.3
