"""BEiT's own baseline in crops of 512 pixels, as the official release has it."""

from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_l_beit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataset.resize.short = 512
dataset.crop.update(size=512, stride=341)
model.backbone = get_config("common/models/beit.py").vit_baseline_beit_large_global
model.backbone.net.img_size = "${dataset.crop.size}"
model.backbone.net.use_act_checkpoint = False
