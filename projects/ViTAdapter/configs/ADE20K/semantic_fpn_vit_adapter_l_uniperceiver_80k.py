from vitadapter.model_zoo import get_config

from .semantic_fpn_vit_adapter_t_deit_80k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config(
    "common/models/uni_perceiver.py"
).vit_adapter_uni_perceiver_large_global
model.backbone.bottom_up.net.use_act_checkpoint = True
train.init_checkpoint = (
    "https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/"
    "uni-perceiver-large-L24-H1024-224size-pretrained_converted.pth"
)
