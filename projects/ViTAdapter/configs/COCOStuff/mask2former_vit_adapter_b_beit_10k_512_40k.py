from vitadapter.model_zoo import get_config

from .mask2former_vit_adapter_l_beit_10k_512_40k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.sem_seg_head = get_config("common/models/mask2former_vit_adapter.py").model.sem_seg_head
model.backbone = get_config("common/models/beit.py").vit_adapter_beit_base_global
model.backbone.net.img_size = "${dataset.crop.size}"
optimizer.lr = 3e-5
optimizer.params.lr_factor_func.rate = 0.95
train.init_checkpoint = "timm://beit_base_patch16_224.in22k_ft_in22k"
