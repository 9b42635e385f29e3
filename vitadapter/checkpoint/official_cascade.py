"""Names of the official cascade and HTC heads, and of ours."""

__all__ = ["CASCADE_HEADS", "HTC_HEADS"]

_STAGES = range(3)
_CONVS = range(4)


def _box_heads() -> dict[str, str]:
    names = {}
    for stage in _STAGES:
        official = f"roi_head.bbox_head.{stage}"
        names |= {
            f"{official}.fc_cls.": f"roi_heads.box_predictor.{stage}.cls_score.",
            f"{official}.fc_reg.": f"roi_heads.box_predictor.{stage}.bbox_pred.",
            f"{official}.shared_fcs.0.": f"roi_heads.box_head.{stage}.fc1.",
        }
        for i in _CONVS:
            conv = f"roi_heads.box_head.{stage}.conv{i + 1}"
            names[f"{official}.shared_convs.{i}.conv."] = f"{conv}."
            names[f"{official}.shared_convs.{i}.bn."] = f"{conv}.norm."
    return names


def _mask_heads() -> dict[str, str]:
    names = {}
    for stage in _STAGES:
        official, ours = f"roi_head.mask_head.{stage}", f"roi_heads.mask_head.{stage}"
        names |= {
            f"{official}.upsample.": f"{ours}.deconv.",
            f"{official}.conv_logits.": f"{ours}.predictor.",
            f"{official}.conv_res.conv.": f"{ours}.conv_res.",
        }
        names |= {f"{official}.convs.{i}.conv.": f"{ours}.mask_fcn{i + 1}." for i in _CONVS}
    return names


def _semantic_head() -> dict[str, str]:
    convs = [f"lateral_convs.{level}" for level in range(5)]
    convs += [f"convs.{i}" for i in _CONVS]
    convs.append("conv_embedding")
    official, ours = "roi_head.semantic_head", "roi_heads.semantic_head"
    names = {f"{official}.{conv}.conv.": f"{ours}.{conv}." for conv in convs}
    return names | {f"{official}.conv_logits.": f"{ours}.conv_logits."}


CASCADE_HEADS = _box_heads() | _mask_heads()
"""Our prefix by official prefix, of the three box and mask heads."""

HTC_HEADS = CASCADE_HEADS | _semantic_head()
"""As :data:`CASCADE_HEADS`, with the semantic branch."""
