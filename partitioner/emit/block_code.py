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
from partitioner.emit.local_sizes import localize
from partitioner.graph.nodes import is_tensor, op_of, operands
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.solution import Solution
from partitioner.ops.collectives import OPS, Collective, conversion
from partitioner.ops.rank_form import rank_form
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import Placement
from partitioner.sharding.mesh_axes import TP

own = torch.ops.partitioner


@dataclass(frozen=True)
class Emitted:
    """The module, and the representative's nodes that its arguments stand for, in order."""

    module: fx.GraphModule
    inputs: tuple[fx.Node, ...]


def emit(
    folded: Folded, solution: Solution, ranks: int, group: int, wanted: tuple[tuple[int, Placement], ...]
) -> Emitted:
    """The module of ``group``'s units that returns the nodes at these positions in these placements."""
    writer = _Writer(folded, solution, ranks, group)
    for node in folded.body(group):
        writer.write(node)
    body = folded.body(group)
    writer.graph.output(tuple(writer.get(body[index], placement) for index, placement in wanted))
    gemms(writer.graph)
    module = fx.GraphModule(nn.Module(), writer.graph, class_name=_identifier(folded.groups[group][0].name))
    module.graph.lint()
    return Emitted(module, tuple(writer.inputs))


def _identifier(name: str) -> str:
    return re.sub(r"\W|^(?=\d)", "_", name)


class _Writer:
    def __init__(self, folded: Folded, solution: Solution, ranks: int, group: int) -> None:
        self.folded, self.solution, self.ranks, self.group = folded, solution, ranks, group
        self.graph = fx.Graph()
        self.inputs: dict[fx.Node, fx.Node] = {}
        self.values: dict[tuple[fx.Node, Placement], fx.Node] = {}
        own_nodes = set(folded.body(group))
        for node in folded.body(group):
            for operand in operands(node):
                if operand not in own_nodes and operand not in self.inputs:
                    self.inputs[operand] = self.graph.placeholder(self.input_name(operand))
                    self.inputs[operand].meta = {"val": operand.meta["val"], **self.origin(operand, self.made(operand))}

    def origin(self, node: fx.Node, placement: Placement) -> dict[str, object]:
        """What an emitted node's meta says: the representative's node that it stands for, how its value lies, and
        whether it has a gradient."""
        gradient = node in self.folded.differentiable
        return {"stands_for": node.name, "placement": placement, "differentiable": gradient}

    def input_name(self, node: fx.Node) -> str:
        return _identifier(node.meta["source"] if node.op == "placeholder" else node.name)

    def made(self, node: fx.Node) -> Placement:
        """Where an operand of the representative lies when it arrives or is made."""
        return self.solution.arrives(self.folded, self.group, node)

    def get(self, node: fx.Node, wanted: Placement) -> fx.Node:
        """The emitted value of ``node`` in a placement, converted once for all its readers."""
        source = self.made(node)
        if (node, source) not in self.values:
            self.values[node, source] = self.inputs[node]
        if (node, wanted) not in self.values:
            self.values[node, wanted] = self.convert(node, source, wanted)
        return self.values[node, wanted]

    def convert(self, node: fx.Node, source: Placement, wanted: Placement) -> fx.Node:
        value = self.values[node, source]
        if not is_tensor(node):
            return value
        rows = conversion(source, wanted, self.ranks, node in self.folded.differentiable)
        if rows is None:
            raise ValueError(f"{node.name} cannot go from {source} to {wanted}")
        for row in rows:
            value = self.call(node, row, value)
            value.meta |= self.origin(node, wanted)
        return value

    def call(self, node: fx.Node, row: Collective, value: fx.Node) -> fx.Node:
        new = self.graph.call_function(getattr(own, row.op).default, (value, TP, *row.arguments))  # type: ignore[arg-type]
        new.meta["val"] = node.meta["val"]
        return new

    def write(self, node: fx.Node) -> None:
        strategy = self.solution.strategies[node]
        readers = iter([self.get(n, p) for n, p in zip(operands(node), strategy.operands, strict=True)])
        target, args, kwargs = _local(node, strategy, self.ranks)
        args, kwargs = fx.map_arg((args, kwargs), lambda _: next(readers))
        new = self.graph.call_function(target, args, kwargs)
        new.meta = {k: v for k, v in node.meta.items() if k in ("modules", "stack_trace", "val")}
        assert not isinstance(strategy.result, tuple)
        new.meta |= self.origin(node, strategy.result)
        self.values[node, strategy.result] = new


def _local(node: fx.Node, strategy: Strategy, ranks: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Target and arguments of an op under a strategy: literals local, ranked ops where plain ones stood."""
    result = strategy.result
    assert not isinstance(result, tuple)
    args, kwargs = localize(node, result, ranks)
    form = rank_form(op_of(node), args, strategy, TP)
    return (*form, {}) if form else (node.target, args, kwargs)


def collective_nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes of a module that communicate, in order."""
    names = {op.target for op in OPS.values() if not op.cuts}
    return (n for n in module.graph.nodes if n.op == "call_function" and str(n.target) in names)
