from .mask_rcnn_vit_adapter_t_deit_3x import dataloader, dataset, lr_multiplier, optimizer, train
from .mask_rcnn_vit_t_deit_1x import model
