"""Models as functions of plain tensors, which `torch.export` can trace."""

from detectron2.modeling.meta_arch import GeneralizedRCNN
from torch import nn

from vitadapter.modeling.dense.detector import SingleAnchorDetector
from vitadapter.modeling.mask2former import Mask2Former
from vitadapter.modeling.semantic import SemanticSegmentor
from vitadapter.modeling.sparse_rcnn import SparseRCNN

from .dense import DenseGraph, SparseRCNNGraph
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


def graph_of(model: nn.Module) -> Graph:
    """Returns a model, in evaluation mode, as a function of plain tensors.

    Raises:
        ValueError: it is a model of another kind, or one that a `Graph` refuses.
    """
    for kind, graph in _GRAPHS.items():
        if isinstance(model, kind):
            return graph(model).eval()
    known = ", ".join(kind.__name__ for kind in _GRAPHS)
    raise ValueError(f"models that can be exported are {known}; got {type(model).__name__}")
