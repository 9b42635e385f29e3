"""Pixel decoder and transformer decoder together."""

from collections.abc import Mapping

from torch import Tensor, nn

from .pixel_decoder import MSDeformAttnPixelDecoder
from .transformer_decoder import MaskedTransformerDecoder, MaskPrediction

__all__ = ["Mask2FormerHead"]


class Mask2FormerHead(nn.Module):
    """Maps a backbone's features to a class and a mask for each query.

    Args:
        pixel_decoder: features to mask features and memories.
        predictor: these to predictions.

    Raises:
        ValueError: the two disagree on widths or on the number of levels.
    """

    def __init__(
        self, pixel_decoder: MSDeformAttnPixelDecoder, predictor: MaskedTransformerDecoder
    ) -> None:
        super().__init__()
        for name in ("embed_dim", "mask_dim", "num_levels"):
            values = getattr(pixel_decoder, name), getattr(predictor, name)
            if values[0] != values[1]:
                raise ValueError(
                    f"pixel decoder and predictor must have the same {name}, got {values}"
                )
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.num_classes = predictor.num_classes
        self.common_stride = pixel_decoder.common_stride

    def forward(self, features: Mapping[str, Tensor]) -> list[MaskPrediction]:
        """
        Args:
            features: maps (B, C_l, h_l, w_l) by name.

        Returns:
            In training a prediction of the initial queries and of every decoder layer, the final
            one last; else only the final one.
        """
        return self.predictor(*self.pixel_decoder(features))
