"""Models as functions of plain tensors, which `torch.export` can trace."""

from detectron2.modeling.meta_arch import GeneralizedRCNN
from torch import nn

from vitadapter.modeling.dense.detector import SingleAnchorDetector
from vitadapter.modeling.mask2former import Mask2Former
from vitadapter.modeling.semantic import SemanticSegmentor
from vitadapter.modeling.sparse_rcnn import SparseRCNN

from .dense import DenseGraph, SparseRCNNGraph
from .full_size import FullSizeMask2FormerGraph, FullSizeRCNNGraph
from .graph import BackboneGraph, Graph
from .rcnn import RCNNGraph
from .segmenters import Mask2FormerGraph, SegmenterGraph

__all__ = ["BackboneGraph", "Graph", "graph_of"]

# The first class that fits is used, so subclasses come before their bases.
_GRAPHS: dict[type[nn.Module], type[Graph]] = {
    Mask2Former: Mask2FormerGraph,
    SemanticSegmentor: SegmenterGraph,
    SingleAnchorDetector: DenseGraph,
    SparseRCNN: SparseRCNNGraph,
    GeneralizedRCNN: RCNNGraph,
}
_FULL_SIZE: dict[type[Graph], type[Graph]] = {
    Mask2FormerGraph: FullSizeMask2FormerGraph,
    RCNNGraph: FullSizeRCNNGraph,
}


def graph_of(model: nn.Module, *, full_size: bool = False) -> Graph:
    """Returns a model, in evaluation mode, as a function of plain tensors.

    Args:
        model: to be exported.
        full_size: see `Graph`.

    Raises:
        ValueError: it is a model of another kind, or one that a `Graph` refuses.
    """
    graph = next((of_kind for kind, of_kind in _GRAPHS.items() if isinstance(model, kind)), None)
    if graph is None:
        known = ", ".join(kind.__name__ for kind in _GRAPHS)
        raise ValueError(f"models that can be exported are {known}; got {type(model).__name__}")
    if full_size and graph not in _FULL_SIZE:
        raise ValueError(
            "only the masks of an R-CNN and the queries of a Mask2Former have a last part that can "
            f"be in the graph, got {type(model).__name__}: leave out full_size (--full-size)"
        )
    return (_FULL_SIZE[graph] if full_size else graph)(model).eval()
