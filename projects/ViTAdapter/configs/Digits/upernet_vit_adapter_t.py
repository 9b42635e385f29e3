"""The quickstart's semantic task: ViT-Adapter-T with UPerNet from scratch on the sample data set.

It tells digits from photographs, which minutes suffice for: which digit a pixel belongs to takes
dense heads much longer than heads that look at one object each (ten digits: mIoU 7.6 after the
same 700 iterations, all of it background).

The images are looked for in the folder where the run is started.
"""

from pathlib import Path

from vitadapter.model_zoo import get_config

_data = get_config("common/data/sem_seg.py")
dataset, dataloader = _data.dataset, _data.dataloader
# The photograph and the digits on it.
dataset.num_classes = 2
dataset.class_names = str(Path(__file__).resolve().with_name("classes.txt"))
dataset.reduce_zero_label = False
dataset.train = dict(
    name="digits_foreground_train",
    image_root="datasets/digits/train",
    label_root="datasets/digits/foreground/train",
)
dataset.test = dict(
    name="digits_foreground_val",
    image_root="datasets/digits/val",
    label_root="datasets/digits/foreground/val",
)
dataset.resize.update(short=128, long=128)
dataset.crop.update(size=128, stride=128)
_augmentations = dataloader.train.mapper.augmentations
_augmentations[0].ratio_range = (0.8, 1.5)
# Most of an image is background.
_augmentations[1].single_category_max_area = 1.0
# Digits are not flipped: a mirrored 3 is no 3.
del _augmentations[2]
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 0
dataloader.test.num_workers = 0

model = get_config("common/models/upernet_vit_adapter.py").model
model.backbone.net.drop_path_rate = 0.0
model.backbone.net.pretrain_img_size = 128
model.sem_seg_head.head.channels = 128
model.sem_seg_head.auxiliary_head.channels = 64

optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 1e-3
lr_multiplier = get_config("common/schedule.py").schedule_poly
lr_multiplier.warmup_iters = 50
lr_multiplier.warmup_factor = 0.001
train = get_config("common/train.py").train
train.max_iter = 700
train.eval_period = 0
train.log_period = 10
train.checkpointer.update(period=100, max_to_keep=2)
train.seed = 1
