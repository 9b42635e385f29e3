"""Tables of prefixes for the official Mask2Former heads; see `official_detectors`."""

__all__ = ["MASK2FORMER_ROWS", "PANOPTIC_ROWS", "mask2former_head"]


def mask2former_head(official: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Rows of a Mask2Former head.

    Args:
        official: prefix of the head in the official names, "decode_head." for one.
        ours: prefix of our head.
    """
    pixel, predictor = "pixel_decoder", "predictor"
    encoder, decoder = "encoder.layers.{i}", "transformer_decoder.layers.{i}"
    rows = (
        (f"{pixel}.input_convs.{{i}}.gn.", f"{pixel}.input_proj.{{i}}.norm."),
        (f"{pixel}.input_convs.{{i}}.conv.", f"{pixel}.input_proj.{{i}}."),
        (f"{pixel}.level_encoding.", f"{pixel}.level_embed."),
        (f"{pixel}.{encoder}.attentions.0.", f"{pixel}.encoder.{{i}}.self_attn."),
        (f"{pixel}.{encoder}.norms.{{j}}.", f"{pixel}.encoder.{{i}}.norm{{j+1}}."),
        (f"{pixel}.{encoder}.ffns.0.layers.0.0.", f"{pixel}.encoder.{{i}}.linear1."),
        (f"{pixel}.{encoder}.ffns.0.layers.1.", f"{pixel}.encoder.{{i}}.linear2."),
        (f"{pixel}.lateral_convs.{{i}}.gn.", f"{pixel}.lateral_convs.{{i}}.norm."),
        (f"{pixel}.lateral_convs.{{i}}.conv.", f"{pixel}.lateral_convs.{{i}}."),
        (f"{pixel}.output_convs.{{i}}.gn.", f"{pixel}.output_convs.{{i}}.norm."),
        (f"{pixel}.output_convs.{{i}}.conv.", f"{pixel}.output_convs.{{i}}."),
        (f"{pixel}.mask_feature.", f"{pixel}.mask_features."),
        (f"{decoder}.attentions.0.attn.", f"{predictor}.layers.{{i}}.cross_attn."),
        (f"{decoder}.attentions.1.attn.", f"{predictor}.layers.{{i}}.self_attn."),
        (f"{decoder}.norms.{{j}}.", f"{predictor}.layers.{{i}}.norm{{j+1}}."),
        (f"{decoder}.ffns.0.layers.0.0.", f"{predictor}.layers.{{i}}.linear1."),
        (f"{decoder}.ffns.0.layers.1.", f"{predictor}.layers.{{i}}.linear2."),
        ("transformer_decoder.post_norm.", f"{predictor}.decoder_norm."),
        ("query_embed.", f"{predictor}.query_embed."),
        ("query_feat.", f"{predictor}.query_feat."),
        ("level_embed.", f"{predictor}.level_embed."),
        ("cls_embed.", f"{predictor}.class_embed."),
        ("mask_embed.", f"{predictor}.mask_embed."),
    )
    return tuple((f"{official}{theirs}", f"{ours}{own}") for theirs, own in rows)


MASK2FORMER_ROWS = mask2former_head("decode_head.", "sem_seg_head.")
PANOPTIC_ROWS = mask2former_head("panoptic_head.", "sem_seg_head.")
