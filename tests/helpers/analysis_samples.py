"""A model of a class that the analysis does not know."""

from detectron2.modeling import Backbone
from torch import nn


class Unknown(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(2, 2)
