"""Official names of Sparse R-CNN, without its neck."""

__all__ = ["SPARSE_RCNN_HEADS"]

SPARSE_RCNN_HEADS = (
    ("rpn_head.init_proposal_bboxes.", "init_proposal_boxes."),
    ("rpn_head.init_proposal_features.", "init_proposal_features."),
    ("roi_head.bbox_head.{i}.attention.attn.", "stages.{i}.attention."),
    ("roi_head.bbox_head.{i}.ffn.layers.0.0.", "stages.{i}.ffn.0."),
    ("roi_head.bbox_head.{i}.ffn.layers.1.", "stages.{i}.ffn.2."),
    ("roi_head.bbox_head.{i}.", "stages.{i}."),
)
