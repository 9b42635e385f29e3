"""Fine-tuning DINOv2 on little panoptic data, small enough for a CPU.

The model's settings, learning rates and schedule are those that ADE20K's `finetune` experiments
were found with, images and their size those of COCO's.
"""

from vitadapter.model_zoo import get_config

from ..ADE20K.mask2former_vit_adapter_s_dinov2_finetune import lr_multiplier, optimizer, train
from ..ADE20K.mask2former_vit_adapter_s_dinov2_finetune import model as _semantic

_data = get_config("common/data/coco_panoptic.py")
dataset, dataloader = _data.dataset, _data.dataloader
_small = get_config("common/data/coco.py")
dataset.resize = _small.small_images
dataloader.train.mapper.augmentations = _small.small_image_augmentations
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 0
dataloader.test.mapper.augmentations = _small.small_image_test_augmentations
dataloader.test.num_workers = 0

model = get_config("common/models/mask2former_vit_adapter.py").model_panoptic
model.backbone = _semantic.backbone
model.sem_seg_head = _semantic.sem_seg_head
model.criterion = _semantic.criterion
