from .mask_rcnn_vit_adapter_l_augreg_1x import model, optimizer
from .mask_rcnn_vit_adapter_s_deit_3x import dataloader, dataset, lr_multiplier, train

train.init_checkpoint = "timm://vit_large_patch16_384.augreg_in21k_ft_in1k"
