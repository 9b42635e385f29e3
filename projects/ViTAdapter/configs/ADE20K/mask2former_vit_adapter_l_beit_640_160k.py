from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import Mask2FormerLayerDecay, NoDecayOneDim

_data = get_config("common/data/ade20k.py")
dataset, dataloader = _data.dataset, _data.dataloader
dataset.resize.short = 640
dataset.crop.update(size=640, stride=426)
_base = get_config("common/models/mask2former_vit_adapter.py")
model = _base.model
model.sem_seg_head = _base.wide_head
model.backbone = get_config("common/models/beit.py").vit_adapter_beit_large_global
model.backbone.net.img_size = "${dataset.crop.size}"
model.backbone.net.use_act_checkpoint = True
model.targets.ignore_value = "${dataset.ignore_label}"
model.inference = get_config("common/models/upernet_vit_adapter.py").model.inference
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 2e-5
optimizer.params.no_decay = L(NoDecayOneDim)()
# As officially the embeddings of the head learn as slowly as those of the net; LayerDecay does not.
optimizer.params.lr_factor_func = L(Mask2FormerLayerDecay)(
    rate=0.9, num_layers="${model.backbone.net.depth}"
)
lr_multiplier = get_config("common/schedule.py").schedule_poly
train = get_config("common/sem_seg_train.py").train
train.init_checkpoint = "timm://beit_large_patch16_224.in22k_ft_in22k"
train.inference.tta = get_config("common/sem_seg_tta.py").multi_scale_flip_beit
