from detectron2.config import LazyCall as L

from vitadapter.modeling.backbone import ChannelMapper, LastLevelMaxPool2x2

from .mask_rcnn_vit_adapter_s_deit_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = L(ChannelMapper)(
    bottom_up=model.backbone.bottom_up,
    in_features=["res2", "res3", "res4", "res5"],
    out_channels=256,
    top_block=L(LastLevelMaxPool2x2)(),
)
train.amp.enabled = True
