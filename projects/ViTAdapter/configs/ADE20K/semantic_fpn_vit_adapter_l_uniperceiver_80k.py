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
# On no hub that timm reads: give the file.
train.init_checkpoint = ""
