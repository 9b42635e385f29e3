from vitadapter.model_zoo import get_config

from .htcpp_vit_adapter_l_beit_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

_nets = get_config("common/models/uni_perceiver.py")
model.backbone.bottom_up.bottom_up = _nets.vit_adapter_uni_perceiver_large
model.backbone.bottom_up.drop_path_rate = 0.4
train.init_checkpoint = (
    "https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/"
    "uni-perceiver-large-L24-H1024-224size-pretrained_converted.pth"
)
