"""The Graph noun: one normalized fx.GraphModule that ends in the loss, and the networkx graph over it."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import torch
from torch import fx

from partitioner.constants import constants, module_path, parameter_free
from partitioner.errors import InputError
from partitioner.layout import Segment, Shard
from partitioner.rules import RULES, Op, complete
from partitioner.shapes import operands, shape_of


@dataclass(frozen=True)
class ParameterInfo:
    """A parameter of the source model: all its names (tied ones together), full shape, dtype, whether it trains."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool


@dataclass(frozen=True)
class Unit:
    """A run of consecutive nodes. Units of equal ``kind`` are identical blocks, node for node."""

    name: str
    nodes: tuple[str, ...]
    kind: int
    is_block: bool


@dataclass(frozen=True)
class Graph:
    """``module``: placeholders (parameters, buffers, inputs), then ops, then the loss. ``batch``: its traced batch size.

    ``units`` cover, in order, every op that has a gradient; ops without one (masks, RoPE tables, shifted labels) are
    ``constants`` or ``prelude`` and are recomputed by each stage that needs them.
    ``batch_layout`` says for each value that carries the batch where it lies; ``inseparable`` names the first op that
    mixes samples, None when the loss is a sum over samples.
    """

    module: fx.GraphModule
    parameters: dict[str, ParameterInfo]
    buffers: dict[str, torch.Tensor]
    inputs: tuple[str, ...]
    batch: int
    units: tuple[Unit, ...]
    constants: tuple[str, ...]
    prelude: tuple[str, ...]
    batch_layout: dict[str, Shard] = field(repr=False)
    inseparable: str | None = None

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """Nodes by name."""
        return {n.name: n for n in self.module.graph.nodes}

    @cached_property
    def digraph(self) -> nx.DiGraph:
        """A node per op with module, unit, shape, dtype, FLOPs, saved and parameter bytes; an edge per operand."""
        return _digraph(self)

    @cached_property
    def blocks(self) -> tuple[Unit, ...]:
        """The repeated units."""
        return tuple(u for u in self.units if u.is_block)


def op_of(node: fx.Node) -> Op:
    """What the rules may look at of a call_function node."""
    literals = tuple(
        None if isinstance(a, fx.Node) or (isinstance(a, list | tuple) and any(isinstance(x, fx.Node) for x in a)) else a
        for a in node.args
    )
    shapes = tuple(shape_of(n) for n in operands(node))
    value = node.meta["val"]
    return Op(str(node.target), shapes, tuple(value.shape) if isinstance(value, torch.Tensor) else (), literals)


def placeholders(graph: fx.Graph, kind: str) -> dict[str, fx.Node]:
    """Placeholders of one kind ("parameter", "buffer", "input") by source name."""
    return {n.meta["source"]: n for n in graph.nodes if n.op == "placeholder" and n.meta["kind"] == kind}


def has_gradient(graph: fx.Graph) -> set[fx.Node]:
    """Floating-point nodes that depend on a parameter that trains."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" and node.meta["kind"] == "parameter":
            found.add(node)
        elif node.op == "call_function" and any(n in found for n in node.all_input_nodes):
            value = node.meta["val"]
            tensors = value if isinstance(value, tuple | list) else (value,)
            if node.target != torch.ops.aten.detach.default and any(t.is_floating_point() for t in tensors):
                found.add(node)
    return found


def batch_layouts(graph: fx.Graph, batch: int) -> tuple[dict[str, Shard], str | None]:
    """Follow the batch dimension from the inputs through every op's rule, in both directions along the edges.

    Returns where it lies in each value, and the first op that mixes samples (None when there is none).
    """
    found: dict[fx.Node, Shard] = {}
    work: list[fx.Node] = []
    for node in placeholders(graph, "input").values():
        shape = shape_of(node)
        if shape and shape[0] == batch:
            found[node] = Shard(0, (Segment(1, batch, 1),))
            work.append(node)
    while work:
        node = work.pop()
        for op, slot in [(node, -1)] * (node.op == "call_function") + [(u, i) for u in node.users for i, n in enumerate(operands(u)) if n is node]:
            if op.op != "call_function":
                continue
            problem = _follow(op, slot, found[node], batch, found, work)
            if problem:
                return {n.name: s for n, s in found.items()}, problem
    return {n.name: s for n, s in found.items()}, None


def _follow(op: fx.Node, slot: int, shard: Shard, batch: int, found: dict[fx.Node, Shard], work: list[fx.Node]) -> str | None:
    strategy = complete(op_of(op), slot, shard, batch)
    if strategy is None:
        return f"{op.name} ({op.target}) in {'.'.join(module_path(op)[-1:]) or 'the model'} mixes samples"
    for node, placement in [*zip(operands(op), strategy.operands, strict=True), (op, strategy.result)]:
        if not isinstance(placement, Shard):
            continue
        if node.op == "placeholder" and node.meta["kind"] != "input":
            return f"{op.name} ({op.target}) ties the batch to {node.meta['source']}"
        if node not in found:
            found[node] = placement
            work.append(node)
        elif found[node] != placement:
            return f"{op.name} ({op.target}) reads {node.name} with the batch in two places"
    return None


def _digraph(graph: Graph) -> nx.DiGraph:
    unit_of = {name: unit.name for unit in graph.units for name in unit.nodes}
    result = nx.DiGraph()
    for node in graph.module.graph.nodes:
        if node.op == "output":
            continue
        value = node.meta["val"]
        tensor = value if isinstance(value, torch.Tensor) else value[0]
        rule = RULES.get(str(node.target))
        flops = rule.flops(op_of(node)) if rule and rule.flops and node.op == "call_function" else 0.0
        result.add_node(
            node.name,
            target=str(node.target) if node.op == "call_function" else node.meta["kind"],
            module=".".join(module_path(node)[-1:]),
            unit=unit_of.get(node.name, ""),
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            forward_flops=flops,
            backward_flops=2 * flops,
            bytes=tensor.numel() * tensor.element_size(),
        )
        result.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
    return result


def check_graph(module: fx.GraphModule) -> None:
    """Raise ValueError unless the graph is in normal form: every op functional and every value a tensor or tuple."""
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            raise ValueError(f"{node.name}: a {node.op} node can't stand in a Graph")
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            raise ValueError(f"{node.name}: {node.target} changes its operand")
        if node.op == "call_function" and schema is None and node.target is not operator.getitem:
            raise ValueError(f"{node.name}: {node.target} is not an op")


def loss_node(graph: fx.Graph) -> fx.Node:
    """The node that the graph returns; raises InputError when there is not exactly one."""
    output = next(n for n in graph.nodes if n.op == "output")
    found = list(output.all_input_nodes)
    if len(found) != 1:
        raise InputError(f"the traced model returns {len(found)} values: it must return its loss alone")
    return found[0]


def gradient_free(graph: fx.Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the constants and of the prelude (what only inputs, buffers and literals feed), in order."""
    fixed, free = constants(graph), parameter_free(graph)
    calls = [n for n in graph.nodes if n.op == "call_function"]
    return (
        tuple(n.name for n in calls if n in fixed),
        tuple(n.name for n in calls if n in free and n not in fixed),
    )
