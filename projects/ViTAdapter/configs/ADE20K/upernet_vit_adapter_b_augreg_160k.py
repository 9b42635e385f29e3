from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import FactorByName, NoDecayByName

from .upernet_vit_adapter_t_deit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = get_config("common/models/vit_adapter_global.py").vit_adapter_base_augreg_global
model.update(get_config("common/pixels.py").inception)
optimizer.lr = 2e-5
optimizer.params.no_decay = L(NoDecayByName)()
# The heads ten times as fast.
optimizer.params.lr_factor_func = L(FactorByName)(factors={"bias": 1.0, "head": 10.0})
train.init_checkpoint = "timm://vit_base_patch16_384.augreg_in21k_ft_in1k"
