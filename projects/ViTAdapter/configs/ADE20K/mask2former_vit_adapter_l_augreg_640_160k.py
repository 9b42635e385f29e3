"""Published without a config: AugReg's net in the recipe of BEiT."""

from vitadapter.model_zoo import get_config

from .mask2former_vit_adapter_l_beit_640_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = get_config("common/models/vit_adapter_global.py").vit_adapter_large_global
model.backbone.net.use_act_checkpoint = True
model.update(get_config("common/pixels.py").inception)
train.init_checkpoint = "timm://vit_large_patch16_384.augreg_in21k_ft_in1k"
