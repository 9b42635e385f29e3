"""Parameter groups and learning-rate schedules."""

from .param_groups import LayerDecay, NoDecayByName, NoDecayOneDim, get_optimizer_params
from .schedule import warm_up

__all__ = ["LayerDecay", "NoDecayByName", "NoDecayOneDim", "get_optimizer_params", "warm_up"]
