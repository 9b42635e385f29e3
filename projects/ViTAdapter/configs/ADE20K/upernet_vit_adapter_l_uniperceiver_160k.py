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
train.init_checkpoint = (
    "https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/"
    "uni-perceiver-large-L24-H1024-224size-pretrained_converted.pth"
)
