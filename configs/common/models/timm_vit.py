"""timm's plain ViTs as nets: DINOv3, EVA-02, DINOv2 with registers, SigLIP 2.

Weights come from `train.init_checkpoint`. Drop path follows the paper's sizes. Nets that are
trained have windows in the paper's blocks, which bounds memory and time on large images; a frozen
net keeps the global attention of its pre-training.

They expect images normalised as in their pre-training, see `common/pixels.py`: DINOv3 and DINOv2
by `imagenet`, which every model base has, EVA-02 by `clip`, SigLIP by `inception`.
"""

from detectron2.config import LazyCall as L

from vitadapter.modeling.backbone import TimmViT

from .sizes import all_global, base, large, small

# `embed_dim`, `depth` and `num_heads` are those of the named model, for others to refer to.
dinov3_base = L(TimmViT)(
    **base,
    model_name="vit_base_patch16_dinov3",
    patch_size=16,
    pretrain_img_size=None,
    use_act_checkpoint=False,
    out_feature="last_feat",
)

dinov3_small = dinov3_base.copy()
dinov3_small.update(model_name="vit_small_patch16_dinov3", **small)

dinov3_large = dinov3_base.copy()
dinov3_large.update(model_name="vit_large_patch16_dinov3", **large)

dinov3_small_frozen = dinov3_small.copy()
dinov3_small_frozen.update(all_global)

dinov3_base_frozen = dinov3_base.copy()
dinov3_base_frozen.update(all_global)

dinov3_large_frozen = dinov3_large.copy()
dinov3_large_frozen.update(all_global)

# 6.7 billion parameters: for the frozen mode.
dinov3_7b_frozen = dinov3_large_frozen.copy()
dinov3_7b_frozen.update(
    model_name="vit_7b_patch16_dinov3", embed_dim=4096, depth=40, num_heads=32, drop_path_rate=0.4
)

# Windows of 16 tokens are the grid of EVA-02's pre-training.
eva02_base = dinov3_base.copy()
eva02_base.update(model_name="eva02_base_patch14_224", window_size=16)

eva02_small = eva02_base.copy()
eva02_small.update(model_name="eva02_small_patch14_224", **small)

eva02_large = dinov3_large.copy()
eva02_large.update(model_name="eva02_large_patch14_224", window_size=16)

# 592 pixels are DINOv2's 37 x 37 positions with patches of 16 pixels.
dinov2_reg_base = dinov3_base.copy()
dinov2_reg_base.update(model_name="vit_base_patch14_reg4_dinov2", pretrain_img_size=592)

dinov2_reg_small = dinov2_reg_base.copy()
dinov2_reg_small.update(model_name="vit_small_patch14_reg4_dinov2", **small)

dinov2_reg_large = dinov2_reg_base.copy()
dinov2_reg_large.update(model_name="vit_large_patch14_reg4_dinov2", **large)

siglip2_base = dinov3_base.copy()
siglip2_base.update(model_name="vit_base_patch16_siglip_512", pretrain_img_size=512)
