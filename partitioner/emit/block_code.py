"""One GraphModule for all units of a group: the representative's ops with local literals, conversions between them.

value made as S(1), read as R     %all_gather = partitioner.all_gather(%add_1, "tp", 1, [1, 2, 64], True)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from partitioner.emit.gemm_ops import gemms
from partitioner.graph.nodes import is_tensor, op_of, operands
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.conversions import Conversion, hops_of
from partitioner.layouts.local_sizes import localize
from partitioner.layouts.solution import Solution
from partitioner.ops.collectives import OPS
from partitioner.ops.conversions import Hop
from partitioner.ops.rank_form import rank_forms
from partitioner.sharding.equations import Strategies
from partitioner.sharding.layout import Layout
from partitioner.sharding.mesh_axes import Axes

own = torch.ops.partitioner


@dataclass(frozen=True)
class Emitted:
    """The module, and the representative's nodes that its arguments stand for, in order."""

    module: fx.GraphModule
    inputs: tuple[fx.Node, ...]


def emit(folded: Folded, solution: Solution, group: int, wanted: tuple[tuple[int, Layout], ...]) -> Emitted:
    """The module of ``group``'s units that returns the nodes at these positions in these layouts."""
    writer = _Writer(folded, solution, group)
    for node in folded.body(group):
        writer.write(node)
    body = folded.body(group)
    writer.graph.output(tuple(writer.get(body[index], layout) for index, layout in wanted))
    gemms(writer.graph)
    module = fx.GraphModule(nn.Module(), writer.graph, class_name=_identifier(folded.groups[group][0].name))
    module.graph.lint()
    return Emitted(module, tuple(writer.inputs))


def _identifier(name: str) -> str:
    return re.sub(r"\W|^(?=\d)", "_", name)


class _Writer:
    def __init__(self, folded: Folded, solution: Solution, group: int) -> None:
        self.folded, self.solution, self.group = folded, solution, group
        self.graph = fx.Graph()
        self.inputs: dict[fx.Node, fx.Node] = {}
        self.values: dict[tuple[fx.Node, Layout], fx.Node] = {}
        own_nodes = set(folded.body(group))
        for node in folded.body(group):
            for operand in operands(node):
                if operand not in own_nodes and operand not in self.inputs:
                    self.inputs[operand] = self.graph.placeholder(self.input_name(operand))
                    self.inputs[operand].meta = {"val": operand.meta["val"], **self.origin(operand, self.made(operand))}

    def origin(self, node: fx.Node, layout: Layout) -> dict[str, object]:
        """What an emitted node's meta says: the representative's node that it stands for, how its value lies, and
        whether it has a gradient."""
        gradient = node in self.folded.differentiable
        return {"stands_for": node.name, "layout": layout, "differentiable": gradient}

    def input_name(self, node: fx.Node) -> str:
        return _identifier(node.meta["source"] if node.op == "placeholder" else node.name)

    def made(self, node: fx.Node) -> Layout:
        """How an operand of the representative lies when it arrives or is made."""
        return self.solution.arrives(self.folded, self.group, node)

    def get(self, node: fx.Node, wanted: Layout) -> fx.Node:
        """The emitted value of ``node`` in a layout, converted once for all its readers."""
        source = self.made(node)
        if (node, source) not in self.values:
            self.values[node, source] = self.inputs[node]
        if (node, wanted) not in self.values:
            self.values[node, wanted] = self.convert(node, source, wanted)
        return self.values[node, wanted]

    def convert(self, node: fx.Node, source: Layout, wanted: Layout) -> fx.Node:
        value = self.values[node, source]
        if not is_tensor(node):
            return value
        move = Conversion(node, source, wanted)
        for hop in hops_of(move, self.solution.axes, node in self.folded.differentiable):
            value = self.call(node, hop, value)
        return value

    def call(self, node: fx.Node, hop: Hop, value: fx.Node) -> fx.Node:
        op, arguments = getattr(own, hop.row.op).default, (value, hop.axis, *hop.row.arguments)
        new = self.graph.call_function(op, arguments)  # type: ignore[arg-type]
        new.meta = {"val": node.meta["val"], **self.origin(node, hop.made)}
        return new

    def write(self, node: fx.Node) -> None:
        strategies = self.solution.strategies[node]
        readers = iter([self.get(n, layout) for n, layout in zip(operands(node), strategies.operands, strict=True)])
        target, args, kwargs = _local(node, strategies, self.solution.axes)
        args, kwargs = fx.map_arg((args, kwargs), lambda _: next(readers))
        new = self.graph.call_function(target, args, kwargs)
        new.meta = {k: v for k, v in node.meta.items() if k in ("modules", "stack_trace", "val")}
        new.meta |= self.origin(node, strategies.result)
        self.values[node, strategies.result] = new


def _local(node: fx.Node, strategies: Strategies, axes: Axes) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Target and arguments of an op on a rank: literals local, ranked ops where plain ones stood."""
    args, kwargs = localize(node, strategies.result, axes)
    forms = list(rank_forms(op_of(node), args, strategies, axes))
    if len(forms) > 1:
        raise ValueError(f"{node.name} communicates along {' and '.join(form.axis for form in forms)}")
    return (forms[0].op, forms[0].arguments, {}) if forms else (node.target, args, kwargs)


def collective_nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes of a module that communicate, in order."""
    names = {op.target for op in OPS.values() if not op.cuts}
    return (n for n in module.graph.nodes if n.op == "call_function" and str(n.target) in names)
