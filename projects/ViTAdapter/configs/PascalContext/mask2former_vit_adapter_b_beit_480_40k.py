from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import Mask2FormerLayerDecay, NoDecayOneDim

_data = get_config("common/data/pascal_context.py")
dataset, dataloader = _data.dataset, _data.dataloader
model = get_config("common/models/mask2former_vit_adapter.py").model
model.backbone = get_config("common/models/beit.py").vit_adapter_beit_base_global
model.backbone.net.img_size = "${dataset.crop.size}"
model.targets.ignore_value = "${dataset.ignore_label}"
model.inference = get_config("common/models/upernet_vit_adapter.py").model.inference
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 3e-5
optimizer.params.no_decay = L(NoDecayOneDim)()
# As officially the embeddings of the head learn as slowly as those of the net; LayerDecay does not.
optimizer.params.lr_factor_func = L(Mask2FormerLayerDecay)(
    rate=0.95, num_layers="${model.backbone.net.depth}"
)
lr_multiplier = get_config("common/schedule.py").schedule_poly
train = get_config("common/sem_seg_train.py").train
train.max_iter = 40000
train.init_checkpoint = "timm://beit_base_patch16_224.in22k_ft_in22k"
train.output_dir = "./output/mask2former_vit_adapter_b_beit_480_40k"
