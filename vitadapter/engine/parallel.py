"""How several processes share the training of a model: what `train.parallel` chooses from."""

import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from vitadapter.layers.mean_over_processes import mean_over_processes

__all__ = ["DDP", "FSDP2", "PARALLEL", "Parallel", "sharded_groups", "whole"]


class Parallel(ABC):
    """A way to share the work. With one process, there is nothing to share."""

    is_sharded: ClassVar[bool]
    """Whether each process has only a part of the weights, and checkpoints are saved in parts."""

    @abstractmethod
    def wrap(self, model: nn.Module, train: DictConfig) -> nn.Module:
        """Moves a model to its device, and returns what trains it.

        Args:
            model: on any device, the same in all processes except for the values of its weights;
                those of the first process count.
            train: the group `train` of the config.
        """

    @abstractmethod
    def place(self, model: nn.Module, train: DictConfig) -> None:
        """Puts a model that is not trained, such as averaged weights, beside the one that is.

        Args:
            model, train: as for `wrap`.
        """


class DDP(Parallel):
    """Each process has the whole model; gradients are averaged."""

    is_sharded = False

    def wrap(self, model: nn.Module, train: DictConfig) -> nn.Module:
        """See `Parallel`."""
        self.place(model, train)
        ddp = dict(train.ddp)
        if torch.device(train.device).type == "cpu":
            ddp.setdefault("device_ids", None)
        return create_ddp_model(model, **ddp)

    def place(self, model: nn.Module, train: DictConfig) -> None:
        """See `Parallel`."""
        _move(model, torch.device(train.device))


class FSDP2(Parallel):
    """Each process has a part of each weight, of its gradient and of the optimizer's state.

    The weights of a group (see `sharded_groups`) are whole while it computes. Mixed precision is
    that of `train.amp`, autocast, so that exactly the same operators are in half precision as with
    DDP: a `MixedPrecisionPolicy` would also cast norms, losses and the coordinates of deformable
    attention, which need float32. Gradients are exchanged in float32. They are divided in each
    micro-batch of `train.accumulate_steps`: to exchange them only once would need the memory of all
    of them, for a third less of communication.
    """

    is_sharded = True

    def wrap(self, model: nn.Module, train: DictConfig) -> nn.Module:
        """See `Parallel`."""
        self.place(model, train)
        return model

    def place(self, model: nn.Module, train: DictConfig) -> None:
        """See `Parallel`."""
        if comm.get_world_size() == 1:
            _move(model, torch.device(train.device))
            return
        weights = model.state_dict() if comm.is_main_process() else {}
        device = torch.device(train.device)
        mesh = init_device_mesh(device.type, (comm.get_world_size(),))
        # PyTorch divides none of these, since they have no dimension: each process has all.
        scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
        for scalar in scalars:
            scalar.data = scalar.data.to(device)
            if scalar.requires_grad:
                scalar.register_hook(mean_over_processes)
        for module in (*sharded_groups(model), model):
            # Groups move to the device one by one, so that the whole model never is on it.
            fully_shard(module, mesh=mesh, ignored_params=scalars)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, weights, options=options)


def _move(model: nn.Module, device: torch.device) -> None:
    # Tensors without data cannot be moved, not even to where they are.
    if any(tensor.device != device for tensor in (*model.parameters(), *model.buffers())):
        model.to(device)


PARALLEL: dict[str, type[Parallel]] = {"ddp": DDP, "fsdp2": FSDP2}
"""By the name that `train.parallel` has."""


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The children of a module, and those of its lists instead of these."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from _parts(child)
        else:
            yield child


def _uses(module: nn.Module) -> Counter[nn.Parameter]:
    """How often the parameters appear in a module."""
    every = (inner._parameters.values() for inner in module.modules())
    return Counter(parameter for some in every for parameter in some if parameter is not None)


def sharded_groups(model: nn.Module) -> list[nn.Module]:
    """The modules whose weights are gathered together, from the inside out.

    They are the blocks of the net, the parts of the adapter's interactions, and the heads: each
    child of the model but its backbone, and each module of a list of heads. What is left of the
    model is a group as well. Modules that share a weight with others are left to the group around
    both.

    Args:
        model: with a `backbone`, or any other.
    """
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.ModuleList) and last == "blocks":
            found += _parts(module)
        elif isinstance(module, nn.ModuleList) and last == "interactions":
            # The adapter calls these, and not the interaction as a whole.
            found += [part for interaction in module for part in _parts(interaction)]
    heads = [child for name, child in model.named_children() if name != "backbone"]
    found += _parts(nn.ModuleList(heads))
    used = _uses(model)
    inside = ((module, _uses(module)) for module in found)
    return [m for m, uses in inside if uses and all(used[p] == n for p, n in uses.items())]


@contextlib.contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Inside of this context, each process has all weights of a model.

    Evaluation needs it: processes predict different numbers of images, in batches and with heads
    that depend on what they find, and test-time augmentation calls parts of a model. Whoever
    changes the weights does it outside. All processes have to enter together.

    Args:
        model: of which parts may be sharded; any other stays as it is.
    """
    parts = [cast(FSDPModule, m) for m in model.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # The root, which comes first, is needed again at the start of the backward pass.
            part.set_reshard_after_forward(part is not parts[0], recurse=False)
