"""After a run on COCO-Stuff (`COCOStuff/mask2former_vit_adapter_l_beit_164k_896_80k`).

All of its weights but the classifier are taken over.
"""

from vitadapter.model_zoo import get_config

from .mask2former_vit_adapter_l_beit_640_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataset.resize.update(short=896, long=3584)
dataset.crop.update(size=896, stride=512)
model.sem_seg_head.predictor.num_queries = 200
train.max_iter = 80000
train.init_checkpoint = "zoo://COCOStuff/mask2former_vit_adapter_l_beit_164k_896_80k"
# Scales below the size of a crop, to which they are padded.
train.inference.tta = get_config("common/sem_seg_tta.py").multi_scale_flip
train.inference.tta.wrapper.resizes.ratios = [640 / 896, 768 / 896, 1.0]
train.inference.tta.overrides = ["model.inference.pad_to_crop=True"]
