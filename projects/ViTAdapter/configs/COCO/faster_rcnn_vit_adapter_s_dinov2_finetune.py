"""`mask_rcnn_vit_adapter_s_dinov2_finetune` for boxes without masks."""

from .mask_rcnn_vit_adapter_s_dinov2_finetune import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.roi_heads.update(mask_in_features=None, mask_pooler=None, mask_head=None)
dataloader.train.dataset.masks = False
dataloader.evaluator.tasks = ["bbox"]
