from .htcpp_vit_adapter_l_beit_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.init_checkpoint = "timm://beitv2_large_patch16_224.in1k_ft_in22k"
