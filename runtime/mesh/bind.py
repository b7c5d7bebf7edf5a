"""From an op with an axis *name* to a function over this rank's process group; a GEMM op to its plain function.

    %y = partitioner.all_reduce(%x, "tp", True)          -->    %y = all_reduce(%x)
    %y = cutlass_ops.linear(%x, %w, %b, False)           -->    %y = eager(%x, %w, %b, False)
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

import partitioner.ops.collectives
import partitioner.ops.own_ops
import partitioner.ops.payloads
from cutlass_ops.linear import fused, gemm, layer
from cutlass_ops.spec import notation
from partitioner.ops.payloads import axis_place, tensor_places
from runtime.mesh import collectives, column_linears, vocab_parallel
from runtime.mesh.axis import Axis
from runtime.mesh.collectives import Bound
from runtime.mesh.communication_log import Phase
from runtime.mesh.groups import Groups

own = torch.ops.partitioner
# importing them registers what is bound here
_SCHEMAS = (partitioner.ops.collectives, partitioner.ops.own_ops, partitioner.ops.payloads)

# op: what makes its bound function of the axis and of the other literals
_ROWS: dict[object, Callable[..., Bound]] = {
    getattr(own, name).default: make for name, make in (collectives.BINDINGS | vocab_parallel.BINDINGS).items()
}


def bind(module: fx.GraphModule, groups: Groups, phase: Phase = "forward") -> fx.GraphModule:
    """A copy of ``module`` whose collectives run on this rank's groups; where nothing communicates, torch's own ops.

    ``phase``: what its forward is logged as.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.target == gemm.ops.linear.default:
            node.target = gemm.eager
    for node in list(graph.nodes):
        if node.target == own.dropout.default and not _is_divided(node):
            node.args = node.args[:4]
        elif node.target in _ROWS:
            _bind(node, groups, phase)
        elif _makes(node):
            node.kwargs = {**node.kwargs, "device": groups.device}
    for node in graph.nodes:
        if node.target == column_linears.FUSED:
            node.target = _fused(groups)
    graph.lint()
    return fx.GraphModule(module, graph)


def _bind(node: fx.Node, groups: Groups, phase: Phase) -> None:
    operands, position = tensor_places(node.target), axis_place(node.target)  # type: ignore[arg-type]
    assert position is not None
    axis = Axis.of(groups, str(node.args[position]), phase)
    is_column = node.target in column_linears.SOURCES and node.args[-1] is not False
    if is_column and column_linears.fuse(node, axis, fused.product(groups.kernels)):
        return
    literals = [a for n, a in enumerate(node.args) if n not in operands and n != position]
    if node.target == own.all_reduce.default:
        literals.append(_is_owned(node.args[0]))
    function = _ROWS[node.target](axis, *literals)
    node.meta["origin"] = node.target
    function.__name__ = str(node.target).split(".")[1]
    node.target, node.args = function, tuple(node.args[n] for n in operands)


def _fused(groups: Groups) -> Callable[..., tuple[torch.Tensor, ...]]:
    def fused_linear(*arguments: Any) -> tuple[torch.Tensor, ...]:
        return fused.eager(*arguments, log=groups.kernels)

    return fused_linear


def _makes(node: fx.Node) -> bool:
    """Whether it makes a tensor out of nothing, which belongs where the rank's tensors lie."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not node.all_input_nodes and any(a.name == "device" for a in schema.arguments)


def _is_divided(dropout: fx.Node) -> bool:
    """Divided along the batch, the keys are divided too, and the op is what it is on one rank."""
    axis, dim, *_ = (*dropout.args[4:], "", 0)[:2] if len(dropout.args) < 6 else dropout.args[4:]
    return bool(axis) and bool(dim != 0)


def _is_owned(operand: Any) -> bool:
    """Whether an all_reduce may sum in place: a result that nothing else reads, of an op that does not keep it."""
    if not isinstance(operand, fx.Node) or len(operand.users) > 1:
        return False
    return _is_product(operand) or operand.meta.get("origin") == own.vocab_parallel_embedding.default


def _is_product(node: fx.Node) -> bool:
    """A product whose result nothing keeps for backward."""
    if node.target == operator.getitem and node.args[0].target == column_linears.FUSED:  # type: ignore[union-attr]
        line, stored = str(node.args[0].args[4]), int(node.args[1])  # type: ignore[union-attr, arg-type]
        epilogue = notation.read(line, "float32")
        return epilogue.stores[stored].value not in layer.reads(epilogue)
    return node.target == gemm.eager and node.args[2] is None
