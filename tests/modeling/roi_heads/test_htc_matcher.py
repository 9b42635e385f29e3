import pytest
import torch
from detectron2.modeling.matcher import Matcher
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitadapter.modeling.roi_heads import BestProposalMatcher


def _plain(ious: Tensor, threshold: float, min_quality: float) -> tuple[list[int], list[int]]:
    """The official assignment, one box and one ground truth at a time."""
    matches, labels = [], []
    for column in ious.T.tolist():
        best = max(range(len(column)), key=lambda i: column[i])
        matches.append(best)
        labels.append(int(column[best] >= threshold))
    for truth, row in enumerate(ious.tolist()):
        if max(row) >= min_quality:
            for proposal, iou in enumerate(row):
                if iou == max(row):
                    matches[proposal], labels[proposal] = truth, 1
    return matches, labels


# Few different values, so that there are many ties.
@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 7), st.sampled_from([0.3, 0.5, 0.7]))
def test_equals_a_plain_loop(data, truths: int, proposals: int, min_quality: float) -> None:
    values = st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.6, 0.9, 1.0])
    numbers = data.draw(st.lists(values, min_size=truths * proposals, max_size=truths * proposals))
    ious = torch.tensor(numbers).view(truths, proposals)
    matches, labels = BestProposalMatcher([0.5], [0, 1], min_quality=min_quality)(ious)
    assert (matches.tolist(), labels.tolist()) == _plain(ious, 0.5, min_quality)
    assert labels.dtype == Matcher([0.5], [0, 1])(ious)[1].dtype


def test_a_proposal_changes_hands() -> None:
    """Detectron2 leaves it with the ground truth that it overlaps most."""
    ious = torch.tensor([[0.9, 0.8, 0.1], [0.1, 0.6, 0.55]])
    assert Matcher([0.5], [0, 1], True)(ious)[0].tolist() == [0, 0, 1]
    matches, labels = BestProposalMatcher([0.5], [0, 1], min_quality=0.5)(ious)
    assert matches.tolist() == [0, 1, 1]
    assert labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_match(shape: tuple[int, int]) -> None:
    matches, labels = BestProposalMatcher([0.5], [0, 1], min_quality=0.5)(torch.zeros(shape))
    assert matches.shape == labels.shape == shape[1:]
    assert not labels.any()


@pytest.mark.parametrize("min_quality", [0.0, -0.1, 1.5])
def test_min_quality_must_be_an_overlap(min_quality: float) -> None:
    with pytest.raises(ValueError, match=rf"min_quality must be in \(0, 1\], got {min_quality}"):
        BestProposalMatcher([0.5], [0, 1], min_quality=min_quality)
