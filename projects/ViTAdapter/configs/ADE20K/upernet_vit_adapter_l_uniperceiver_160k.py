from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_t_deit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = get_config("common/models/uni_perceiver.py").vit_adapter_uni_perceiver_large_global
model.backbone.net.use_act_checkpoint = True
optimizer.lr = 6e-5
optimizer.weight_decay = 0.05
optimizer.params.lr_factor_func.rate = 0.8
# On no hub that timm reads: give the file.
train.init_checkpoint = ""
