"""Programs of `torch.export` whose matrix products and convolutions compute in half precision."""

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from .graphs.full_size import MaskPasting

__all__ = ["with_half_products"]

_aten = torch.ops.aten
_PRODUCTS = frozenset(
    {
        _aten.addmm.default,
        _aten.baddbmm.default,
        _aten.bmm.default,
        _aten.conv2d.default,
        _aten.conv_transpose2d.input,
        _aten.einsum.default,
        _aten.linear.default,
        _aten.matmul.default,
        _aten.mm.default,
        _aten.scaled_dot_product_attention.default,
    }
)


def with_half_products(program: ExportedProgram, dtype: torch.dtype) -> ExportedProgram:
    """Makes the products of a float32 program compute in half precision.

    Everything between them and `MaskPasting` stay in float32. Weights that only products read are
    halved.

    Args:
        program: changed in place.
        dtype: `torch.float16` or `torch.bfloat16`.
    """
    graph = program.graph_module.graph
    _halve_weights(program, dtype)
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _PRODUCTS or _is_pasting(node):
            continue
        if node.meta["val"].dtype != torch.float32:
            continue
        with graph.inserting_before(node):
            halved = {each: _cast(each, dtype) for each in node.all_input_nodes}
        for each, half in halved.items():
            node.replace_input_with(each, half)
        others = list(node.users)
        node.meta["val"] = node.meta["val"].to(dtype)
        with graph.inserting_after(node):
            result = _cast(node, torch.float32)
        for user in others:
            user.replace_input_with(node, result)
    graph.lint()
    program.graph_module.recompile()
    return program


def _is_pasting(node: Node) -> bool:
    modules = node.meta.get("nn_module_stack", {}).values()
    return any(str(kind).endswith(MaskPasting.__name__) for _, kind in modules)


def _cast(node: Node, dtype: torch.dtype) -> Node:
    """Returns a node of the graph that casts a tensor of floating point, or the tensor itself."""
    value = node.meta["val"]
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
        return node
    cast = node.graph.call_function(_aten.to.dtype, (node, dtype))
    cast.meta = {**node.meta, "val": value.to(dtype)}
    return cast


def _halve_weights(program: ExportedProgram, dtype: torch.dtype) -> None:
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for entry in program.graph_signature.input_specs:
        if entry.kind != InputKind.PARAMETER or entry.target is None:
            continue
        node = nodes[entry.arg.name]
        if all(user.target in _PRODUCTS for user in node.users):
            weight = program.state_dict[entry.target]
            program.state_dict[entry.target] = torch.nn.Parameter(weight.to(dtype), False)
            node.meta["val"] = node.meta["val"].to(dtype)
