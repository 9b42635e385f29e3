"""The heads of Hybrid Task Cascade (arXiv 1901.07518)."""

from collections.abc import Callable, Sequence

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from vitadapter.layers.nms import NMS
from vitadapter.modeling.roi_heads.cascade import CascadeROIHeads, Features
from vitadapter.modeling.roi_heads.semantic_head import FusedSemanticHead

__all__ = ["HTCMaskHead", "HTCROIHeads"]

_SEMANTIC = "semantic"


class HTCMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's mask head with an input from the head of the stage before."""

    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        conv_norm: str | Callable[[int], nn.Module] = "",
        takes_previous: bool = True,
        loss_weight: float = 1.0,
        vis_period: int = 0,
    ) -> None:
        """
        Args:
            input_shape: of the pooled features.
            num_classes: number of foreground classes.
            conv_dims: channels of the 3x3 convolutions and, last, of the upsampling.
            conv_norm: Detectron2's norm name or a callable.
            takes_previous: whether there is a stage before.
            loss_weight: factor of the loss.
            vis_period: iterations between two dumps of the masks; 0 for none.

        Raises:
            ValueError: `conv_dims` has no 3x3 convolution, whose output the next stage takes.
        """
        if len(conv_dims) < 2:
            raise ValueError(f"conv_dims needs a convolution and the upsampling, got {conv_dims}")
        super().__init__(
            input_shape,
            num_classes=num_classes,
            conv_dims=list(conv_dims),
            conv_norm=conv_norm,
            loss_weight=loss_weight,
            vis_period=vis_period,
        )
        self.conv_res = None
        if takes_previous:
            self.conv_res = Conv2d(
                conv_dims[-2],
                input_shape.channels,
                kernel_size=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, input_shape.channels),
                activation=nn.ReLU(),
            )
            nn.init.kaiming_normal_(self.conv_res.weight, mode="fan_out", nonlinearity="relu")
            if self.conv_res.bias is not None:
                nn.init.zeros_(self.conv_res.bias)

    def features(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        """Features (R, C, H, W) before the upsampling.

        Args:
            x: pooled features (R, C, H, W).
            previous: the features of the stage before, for a head that takes them.
        """
        if self.conv_res is not None and previous is not None:
            x = x + self.conv_res(previous)
        for conv in self.conv_norm_relus:
            x = conv(x)
        return x

    def predict(self, features: Tensor) -> Tensor:
        """Logits (R, num_classes, 2H, 2W) from :meth:`features`."""
        return self.predictor(self.deconv_relu(self.deconv(features)))

    def layers(self, x: Tensor) -> Tensor:
        """As :class:`MaskRCNNConvUpsampleHead`: logits without a stage before."""
        return self.predict(self.features(x))


class HTCROIHeads(CascadeROIHeads):
    """A cascade whose box and mask branches are interleaved and see the semantic branch.

    - In training a stage's mask head learns on the boxes that the stage has just refined, matched
      and sampled anew.
    - A mask head adds a convolved copy of the last features of the head before.
    - Features of the semantic head are pooled and added to those of masks and, averaged to
      their size, of boxes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        box_in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[FastRCNNOutputLayers],
        proposal_matchers: Sequence[Matcher],
        mask_in_features: Sequence[str],
        mask_pooler: ROIPooler,
        mask_heads: Sequence[HTCMaskHead],
        semantic_in_features: Sequence[str],
        semantic_pooler: ROIPooler,
        semantic_head: FusedSemanticHead,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        proposal_append_gt: bool = True,
        stage_loss_weights: Sequence[float] = (1.0, 0.5, 0.25),
        average_logits: bool = True,
        nms: NMS | None = None,
    ) -> None:
        """
        Args:
            semantic_in_features: feature maps of the semantic head, finest first.
            semantic_pooler: pools its features at the size of the mask features.
            semantic_head: the semantic branch.
            others: see :class:`CascadeROIHeads`.
        """
        super().__init__(
            num_classes=num_classes,
            box_in_features=box_in_features,
            box_pooler=box_pooler,
            box_heads=box_heads,
            box_predictors=box_predictors,
            proposal_matchers=proposal_matchers,
            mask_in_features=mask_in_features,
            mask_pooler=mask_pooler,
            mask_heads=mask_heads,
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            proposal_append_gt=proposal_append_gt,
            stage_loss_weights=stage_loss_weights,
            average_logits=average_logits,
            nms=nms,
        )
        self.semantic_in_features = semantic_in_features
        self.semantic_pooler = semantic_pooler
        self.semantic_head = semantic_head

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        sem_seg: Tensor | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Args:
            images, features, proposals, targets: see :class:`CascadeROIHeads`.
            sem_seg: (N, H, W) labels at the semantic head's stride; in training only.
        """
        logits, features = self._with_semantic(features)
        instances, losses = super().forward(images, features, proposals, targets)
        if self.training:
            losses["loss_sem_seg"] = self.semantic_head.loss(logits, sem_seg)
        return instances, losses

    def forward_with_given_boxes(
        self, features: Features, instances: list[Instances]
    ) -> list[Instances]:
        """See :class:`StandardROIHeads`."""
        if _SEMANTIC not in features:
            _, features = self._with_semantic(features)
        return super().forward_with_given_boxes(features, instances)

    def _with_semantic(self, features: Features) -> tuple[Tensor, Features]:
        logits, semantic = self.semantic_head([features[f] for f in self.semantic_in_features])
        return logits, {**features, _SEMANTIC: semantic}

    def _box_features(self, features: Features, boxes: list[Boxes]) -> Tensor:
        x = super()._box_features(features, boxes)
        semantic = self.semantic_pooler([features[_SEMANTIC]], boxes)
        return x + F.adaptive_avg_pool2d(semantic, x.shape[-2:])

    def _mask_features(self, features: Features, boxes: list[Boxes]) -> Tensor:
        x = super()._mask_features(features, boxes)
        semantic = self.semantic_pooler([features[_SEMANTIC]], boxes)
        return x + F.adaptive_avg_pool2d(semantic, x.shape[-2:])

    def _mask_proposals(
        self,
        sampled: list[Instances],
        refined: list[Instances],
        targets: list[Instances],
        stage: int,
    ) -> list[Instances]:
        del sampled
        return self._label_and_sample(refined, targets, stage)

    def _mask_logits(self, x: Tensor, stages: Sequence[int]) -> list[Tensor]:
        logits, previous = [], None
        for stage, head in enumerate(self.mask_head[: max(stages) + 1]):
            previous = head.features(x, previous)
            if stage in stages:
                logits.append(head.predict(previous))
        return logits
