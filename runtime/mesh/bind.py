"""From an op with an axis *name* to a function over this rank's process group; a GEMM op to its plain function.

    %y = partitioner.all_reduce(%x, "tp", True)          -->    %y = all_reduce(%x)
    %y = cutlass_ops.linear(%x, %w, %b, False)           -->    %y = eager(%x, %w, %b, False)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

import partitioner.ops.collectives
import partitioner.ops.payloads
from cutlass_ops.linear import fused, gemm, layer
from cutlass_ops.linear.layer import Product, Tensors
from cutlass_ops.spec import notation
from cutlass_ops.spec.spec import Gemm
from partitioner.lowering.program import Recompute
from partitioner.ops import cache_ops, own_ops
from partitioner.ops.collectives import OPS
from partitioner.ops.payloads import axis_place, tensor_places
from runtime.mesh import collectives, column_linears, vocab_parallel
from runtime.mesh.axis import Axis
from runtime.mesh.collectives import Binding
from runtime.mesh.communication_log import Phase
from runtime.mesh.groups import Groups
from runtime.mesh.kept_results import as_one, kept
from runtime.mesh.seen_axis import SeenAxis

own = torch.ops.partitioner
# importing them registers what is bound here
_SCHEMAS = (partitioner.ops.collectives, partitioner.ops.payloads)

_ROWS: dict[object, Binding] = {
    getattr(own, name).default: row for name, row in (collectives.BINDINGS | vocab_parallel.BINDINGS).items()
}
# what is written in Python is called without torch's dispatcher between
_PLAIN: dict[object, Callable[..., object]] = {
    getattr(own, op.__name__).default: op for op in (own_ops.part, *cache_ops.OPS)
}


def bind(
    module: fx.GraphModule, groups: Groups, phase: Phase = "forward", recompute: Recompute | None = None
) -> fx.GraphModule:
    """A copy of ``module`` whose collectives run on this rank's groups; where nothing communicates, torch's own ops.

    ``phase``: what its forward is logged as. ``recompute``: which of its nodes' results are kept from forward to
    backward, should it run under selective contexts.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    if recompute is not None:
        for node, source in zip(graph.nodes, module.graph.nodes, strict=True):
            node.meta |= {"kept": recompute.kept.get(source.name), "passed": source.name in recompute.passed}
    for node in graph.nodes:
        if node.target == gemm.ops.linear.default:
            node.target = gemm.eager
    for node in list(graph.nodes):
        if node.target in _ROWS:
            _bind(node, groups, phase)
        elif (plain := _PLAIN.get(node.target)) is not None:
            node.target = plain
        elif _makes(node):
            node.kwargs = {**node.kwargs, "device": groups.device}
    for node in graph.nodes:
        if node.target == column_linears.FUSED:
            node.target = _fused(groups, node)
        if node.meta.get("kept"):
            node.target = kept(node.target, node.meta["kept"])
    graph.lint()
    return fx.GraphModule(module, graph)


def _bind(node: fx.Node, groups: Groups, phase: Phase) -> None:
    operands, position = tensor_places(node.target), axis_place(node.target)  # type: ignore[arg-type]
    assert position is not None
    if position >= len(node.args) or not node.args[position]:
        return  # on no axis it is what it is on one rank
    axis = Axis.of(groups, str(node.args[position]), phase)
    if node.meta.get("kept"):
        axis = SeenAxis(**vars(axis), lets_go=_is_let_go(node.args[0]))
    row, literals = _ROWS[node.target], [a for n, a in enumerate(node.args) if n not in operands and n != position]
    op = OPS.get(str(node.target).split(".")[1])
    is_column = op is not None and column_linears.sums_back(op, literals)
    if is_column and column_linears.fuse(node, axis, literals, _product(groups, node)):
        return
    literals += [_is_owned(node.args[0])] if row.in_place else []
    function = row.make(axis, *literals)
    node.meta["is_fresh"] = row.is_fresh
    function.__name__ = str(node.target).split(".")[1]
    node.target, node.args = function, tuple(node.args[n] for n in operands)


def _fused(groups: Groups, node: fx.Node) -> Callable[..., tuple[torch.Tensor, ...]]:
    product = _product(groups, node)

    def fused_linear(*arguments: Any) -> tuple[torch.Tensor, ...]:
        return fused.through(product, *arguments)

    return fused_linear


def _product(groups: Groups, node: fx.Node) -> Product:
    """Through the kernels; as one op where it, or what reads it, is kept."""
    product = fused.product(groups.kernels)
    if not any(n.meta.get("kept") for n in (node, *node.users)):
        return product

    def seen(gemm: Gemm, a: torch.Tensor, b: torch.Tensor, loads: Sequence[torch.Tensor], key: str) -> Tensors:
        return tuple(as_one(lambda a, b, *loads: product(gemm, a, b, loads, key), a, b, *loads))

    return seen


def _is_let_go(operand: Any) -> bool:
    """Whether a kept result is held for the one collective that reads it."""
    return isinstance(operand, fx.Node) and bool(operand.meta.get("passed")) and len(operand.users) == 1


def _makes(node: fx.Node) -> bool:
    """Whether it makes a tensor out of nothing, which belongs where the rank's tensors lie."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not node.all_input_nodes and any(a.name == "device" for a in schema.arguments)


def _is_owned(operand: Any) -> bool:
    """Whether a collective may sum in place: a result that nothing else reads, of an op that does not keep it."""
    if not isinstance(operand, fx.Node) or len(operand.users) > 1:
        return False
    return _is_product(operand) or bool(operand.meta.get("is_fresh"))


def _is_product(node: fx.Node) -> bool:
    """A product whose result nothing keeps for backward."""
    if node.target == operator.getitem and node.args[0].target == column_linears.FUSED:  # type: ignore[union-attr]
        line, stored = str(node.args[0].args[4]), int(node.args[1])  # type: ignore[union-attr, arg-type]
        epilogue = notation.read(line, "float32")
        return epilogue.stores[stored].value not in layer.reads(epilogue)
    return node.target == gemm.eager and node.args[2] is None
