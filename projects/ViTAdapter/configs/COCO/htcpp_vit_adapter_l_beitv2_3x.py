from .htcpp_vit_adapter_l_beit_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.output_dir = "./output/htcpp_vit_adapter_l_beitv2_3x"
