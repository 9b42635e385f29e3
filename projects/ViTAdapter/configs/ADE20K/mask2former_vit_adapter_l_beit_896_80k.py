"""After a run on COCO-Stuff (`COCOStuff/mask2former_vit_adapter_l_beit_164k_896_80k`).

Give its weights as `train.init_checkpoint`: all but the classifier are taken over.
"""

from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import Mask2FormerLayerDecay, NoDecayOneDim

_data = get_config("common/data/ade20k.py")
dataset, dataloader = _data.dataset, _data.dataloader
dataset.resize.update(short=896, long=3584)
dataset.crop.update(size=896, stride=512)
_base = get_config("common/models/mask2former_vit_adapter.py")
model = _base.model
model.sem_seg_head = _base.wide_head
model.backbone = get_config("common/models/beit.py").vit_adapter_beit_large_global
model.backbone.net.img_size = "${dataset.crop.size}"
model.backbone.net.use_act_checkpoint = True
model.targets.ignore_value = "${dataset.ignore_label}"
model.inference = get_config("common/models/upernet_vit_adapter.py").model.inference
model.sem_seg_head.predictor.num_queries = 200
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 2e-5
optimizer.params.no_decay = L(NoDecayOneDim)()
# As officially the embeddings of the head learn as slowly as those of the net; LayerDecay does not.
optimizer.params.lr_factor_func = L(Mask2FormerLayerDecay)(
    rate=0.9, num_layers="${model.backbone.net.depth}"
)
lr_multiplier = get_config("common/schedule.py").schedule_poly
train = get_config("common/sem_seg_train.py").train
train.max_iter = 80000
# What the COCO-Stuff run ends with.
train.init_checkpoint = ""
train.output_dir = "./output/mask2former_vit_adapter_l_beit_896_80k"
