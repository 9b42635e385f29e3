from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import LayerDecay, NoDecayOneDim

from .mask_rcnn_vit_adapter_s_deit_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = get_config("common/models/timm_vit_adapter.py").vit_adapter_eva02_large
# EVA-02's pre-training normalises as CLIP does.
model.pixel_mean = [122.771, 116.746, 104.094]
model.pixel_std = [68.5, 66.632, 70.323]
optimizer.params.no_decay = L(NoDecayOneDim)()
optimizer.params.lr_factor_func = L(LayerDecay)(
    rate=0.8, num_layers="${model.backbone.bottom_up.net.depth}"
)
train.init_checkpoint = "timm://eva02_large_patch14_224.mim_m38m"
