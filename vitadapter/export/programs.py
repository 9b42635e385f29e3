"""Programs of `torch.export` for images of any size."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from .graphs import Graph

__all__ = ["paused_collection", "program_of"]


@contextmanager
def paused_collection() -> Iterator[None]:
    """Inside this context, Python does not look for garbage.

    Tracing makes so many objects that this would take most of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def program_of(graph: Graph, size: tuple[int, int] | None = None) -> ExportedProgram:
    """Exports a model.

    Args:
        graph: the model, on the CPU, as a function of `images` (B, 3, H, W), uint8, `size`, and
            `output_size` if `graph.full_size`.
        size: (height, width) of padded images in pixels, multiples of `graph.multiple`; None for a
            program that takes any size.

    Returns:
        A program for images of any H and W that are multiples of `graph.multiple`, at least two of
        them, or of one size; for batches of any size if the graph takes batches.

    Raises:
        ValueError: the model has a part that only takes one size, and `size` is None; or one that
            cannot be traced.
    """
    multiple = graph.multiple
    # Large, so that there are several attention windows: of what there is one in the example, there
    # would be one in all images. Prime, so that the last windows are padded. All sides of feature
    # maps differ, so that none is taken for another. A trace computes nothing, and takes no longer
    # for it.
    height, width = size or (43 * multiple, 67 * multiple)
    dimensions: dict[int, object] = {}
    if size is None:
        dimensions |= {2: multiple * Dim("rows"), 3: multiple * Dim("columns")}
    if graph.takes_batches:
        dimensions[0] = Dim("batch", min=1)
    batch = 2 if graph.takes_batches else 1
    images = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    arguments = [images, torch.tensor([height - 1, width - 1])]
    if graph.full_size:
        arguments.append(torch.tensor([2 * height - 3, 2 * width - 5]))
    shapes = (dimensions, *[None] * (len(arguments) - 1))
    with torch.no_grad(), paused_collection():
        try:
            program = torch.export.export(
                graph, tuple(arguments), dynamic_shapes=shapes, strict=False
            )
        except ValueError:  # what a part of the model says of itself
            raise
        except Exception as error:  # whatever the model's code raises with sizes without numbers
            raise ValueError(f"torch.export cannot trace the model: {error}") from error
    if size is None:
        _check_guards(program, graph)
    # What the rest would check is how memory was laid out for the example's size, which the
    # operators of the program do not depend on. The shapes of inputs are checked nevertheless.
    program._guards_code = []
    _drop_traces(program)
    return program


def _drop_traces(program: ExportedProgram) -> None:
    """Drops lines of source code and folders of this machine, which would be in files as well."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _check_guards(program: ExportedProgram, graph: Graph) -> None:
    """Raises ValueError if a condition of the trace holds only for the size of the example.

    Python code of a model has then turned a size into a number, or has taken a branch by it, and
    the program would answer as for the example. Conditions that two numbers differ are those of
    memory layouts.
    """
    batch = 3 if graph.takes_batches else 1
    images = torch.empty(batch, 3, 83 * graph.multiple, 71 * graph.multiple, device="meta")
    names = {"L": {"images": images}, "torch": torch, "math": math}
    for guard in program._guards_code:
        if " != " not in guard and not eval(guard, names):
            raise ValueError(
                "the model cannot be exported for images of any size, since a part of it was "
                f"traced for one size ({guard}): give one (--size H W)"
            )
