"""Assignment of proposals to ground truth as the official recipes do it."""

from collections.abc import Sequence

import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor

__all__ = ["BestProposalMatcher"]


class BestProposalMatcher(Matcher):
    """Detectron2's matcher, after which each ground truth takes the proposals nearest to it.

    Detectron2's low-quality matches only label such a proposal as foreground and leave it with
    the ground truth that it overlaps most; here it changes hands. A ground truth that no proposal
    overlaps by `min_quality` takes none.
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], *, min_quality: float
    ) -> None:
        """
        Args:
            thresholds, labels: as Detectron2's matcher.
            min_quality: IoU that a ground truth's nearest proposal must reach to be taken.

        Raises:
            ValueError: `min_quality` is not in (0, 1].
        """
        if not 0 < min_quality <= 1:
            raise ValueError(f"min_quality must be in (0, 1], got {min_quality}")
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches=False)
        self.min_quality = min_quality

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            match_quality_matrix: (M, N) IoU of M ground truths with N proposals.

        Returns:
            tuple[Tensor, Tensor]: (N,) matched ground truths and (N,) labels, as Detectron2's.
        """
        matches, labels = super().__call__(match_quality_matrix)
        if match_quality_matrix.numel() == 0:
            return matches, labels
        best = match_quality_matrix.max(dim=1, keepdim=True).values  # (M, 1)
        taken = (match_quality_matrix == best) & (best >= self.min_quality)
        # Of several ground truths that want one proposal, the last gets it.
        order = torch.arange(1, len(taken) + 1, device=taken.device)[:, None]
        taker = (taken * order).max(dim=0).values  # (N,), 0: nobody
        matches = torch.where(taker > 0, taker - 1, matches)
        return matches, torch.where(taker > 0, labels.new_ones(()), labels)
