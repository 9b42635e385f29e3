from .upernet_vit_adapter_t_deit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.init_checkpoint = "timm://vit_tiny_patch16_224.augreg_in21k_ft_in1k"
