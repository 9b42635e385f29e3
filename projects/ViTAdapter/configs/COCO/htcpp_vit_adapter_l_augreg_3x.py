import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from vitadapter.data.insta_boost import InstaBoost
from vitadapter.model_zoo import get_config
from vitadapter.modeling.backbone import ExtraAttention
from vitadapter.solver import LayerDecay, NoDecayOneDim

_data = get_config("common/data/coco.py")
dataset, dataloader = _data.dataset, _data.dataloader
# COCO-Stuff's maps, such as "datasets/coco/stuffthingmaps/train2017"; without them the semantic
# branch learns the things.
dataset.train.sem_seg_root = None
dataloader.train.dataset.sem_seg_root = "${dataset.train.sem_seg_root}"
dataloader.train.mapper.instance_augmentation = L(InstaBoost)(
    prob=0.5,
    scale=(0.8, 1.2),
    max_shift=(1 / 15, 1 / 15),
    angle=(-1.0, 1.0),
    color_prob=0.5,
    image_format="${model.input_format}",
)
dataloader.train.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=(400, 1400), sample_style="range", max_size=1600),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=1400, max_size=1600)
]

model = get_config("common/models/htc_vit_adapter.py").model
model.backbone.bottom_up = L(ExtraAttention)(
    bottom_up=get_config("common/models/vit_adapter.py").vit_adapter_large,
    num_heads=32,
    ffn_ratio=4.0,
    drop_path_rate=0.4,
    use_act_checkpoint=False,
)
model.backbone.bottom_up.bottom_up.net.use_act_checkpoint = True
for _predictor in model.roi_heads.box_predictors:
    _predictor.test_topk_per_image = 300

optimizer = get_config("common/optim.py").AdamW
optimizer.params.no_decay = L(NoDecayOneDim)()
optimizer.params.lr_factor_func = L(LayerDecay)(
    rate=0.9, num_layers="${model.backbone.bottom_up.bottom_up.net.depth}"
)
lr_multiplier = get_config("common/schedule.py").schedule_3x
train = get_config("common/train.py").train
train.max_iter = 263880
train.init_checkpoint = "timm://vit_large_patch16_384.augreg_in21k_ft_in1k"
train.inference.tta = get_config("common/tta.py").official_multi_scale_flip
train.inference.tta.wrapper.tta_mapper.max_size = 1600
train.inference.tta.overrides = [
    f"model.roi_heads.box_predictors.{stage}.test_topk_per_image=100" for stage in range(3)
]
