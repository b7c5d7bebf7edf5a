"""The Graph noun: one normalized fx.GraphModule that ends in the loss, and the networkx graph over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import torch
from torch import fx

from partitioner.errors import InputError
from partitioner.graph.counts import Count
from partitioner.graph.dependence import constants, module_path, parameter_free
from partitioner.graph.nodes import is_parameter, op_of, operands
from partitioner.graph.saved_by_autograd import saved_bytes
from partitioner.precision import OWN, Precision
from partitioner.sharding.layout import Shard
from partitioner.sharding.op_rules import rule_of


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

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Graph:
    """``module``: placeholders (parameters, buffers, inputs), then ops, then the loss. ``batch``: its batch size.

    ``units`` cover, in order, every op that has a gradient; ops without one (masks, RoPE tables, shifted labels) are
    ``constants`` or ``prelude`` and are recomputed by each stage that needs them.
    ``batch_layout`` says for each value that carries the batch where it lies; ``batched`` are the inputs that do,
    in dimension 0; the others belong to every sample.
    ``inseparable`` names the first op that mixes samples, so that dp and micro-batches are not to be had; None when the
    loss is a sum over samples, divided by ``counts`` of the global batch.
    ``plain`` are values of the batch that are no tensors, by name: the graph holds for these. ``notes`` is what tracing
    has to say. ``precision``: as which it was traced; the dtypes of ``parameters`` are those in which ops read them.
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
    counts: tuple[Count, ...] = ()
    batched: tuple[str, ...] = ()
    plain: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    precision: Precision = OWN

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """Nodes by name."""
        return {n.name: n for n in self.module.graph.nodes}

    @cached_property
    def digraph(self) -> nx.DiGraph[str]:
        """A node a value (op, parameter, input, buffer), an edge an operand.

        Nodes carry target, module (the innermost) and module_path (outermost first), unit, layer (which block, None
        outside blocks), shape, dtype, bytes, parameter_bytes, forward_flops, backward_flops and saved_bytes: what
        backward keeps from here on and no earlier op kept.
        """
        return _digraph(self)

    @cached_property
    def trained(self) -> dict[Unit, tuple[fx.Node, ...]]:
        """The trained parameters that each unit reads."""
        return {u: tuple(n for n in found if self._trains(n)) for u, found in self._read.items()}

    @cached_property
    def frozen(self) -> dict[Unit, tuple[fx.Node, ...]]:
        """The parameters that each unit reads and nothing trains."""
        return {u: tuple(n for n in found if not self._trains(n)) for u, found in self._read.items()}

    @cached_property
    def _read(self) -> dict[Unit, tuple[fx.Node, ...]]:
        nodes = self.nodes
        read = {u: dict.fromkeys(n for name in u.nodes for n in operands(nodes[name])) for u in self.units}
        return {u: tuple(n for n in found if is_parameter(n)) for u, found in read.items()}

    @cached_property
    def shared_parameters(self) -> dict[fx.Node, frozenset[Unit]]:
        """Parameters that several units read, and those units."""
        nodes, found = self.nodes, dict[fx.Node, set[Unit]]()
        for unit in self.units:
            for node in dict.fromkeys(n for name in unit.nodes for n in operands(nodes[name]) if is_parameter(n)):
                found.setdefault(node, set()).add(unit)
        return {node: frozenset(units) for node, units in found.items() if len(units) > 1}

    def _trains(self, node: fx.Node) -> bool:
        return self.parameters[node.meta["source"]].requires_grad

    @cached_property
    def blocks(self) -> tuple[Unit, ...]:
        """The repeated units."""
        return tuple(u for u in self.units if u.is_block)


def placeholders(graph: fx.Graph, kind: str) -> dict[str, fx.Node]:
    """Placeholders of one kind ("parameter", "buffer", "input") by source name."""
    return {n.meta["source"]: n for n in graph.nodes if n.op == "placeholder" and n.meta["kind"] == kind}


def has_gradient(graph: fx.Graph) -> set[fx.Node]:
    """Real and complex nodes that depend on a parameter that trains: of each use, not of the kind of block."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" and node.meta["kind"] == "parameter" and node.meta["trains"]:
            found.add(node)
        elif node.op == "call_function" and any(n in found for n in node.all_input_nodes):
            value = node.meta["val"]
            tensors = value if isinstance(value, tuple | list) else (value,)
            if node.target != torch.ops.aten.detach.default and any(_is_continuous(t.dtype) for t in tensors):
                found.add(node)
    return found


def reached(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that a gradient of the loss comes to; autograd leaves the other parameters without one."""
    able, found = has_gradient(graph), set[fx.Node]()
    work = [loss_node(graph)]
    while work:
        node = work.pop()
        if node in able and node not in found:
            found.add(node)
            work.extend(node.all_input_nodes)
    return found


def _is_continuous(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _digraph(graph: Graph) -> nx.DiGraph[str]:
    unit_of = {name: unit.name for unit in graph.units for name in unit.nodes}
    layer_of = {name: layer for layer, unit in enumerate(graph.blocks) for name in unit.nodes}
    saved = saved_bytes(graph.module.graph, has_gradient(graph.module.graph))
    result: nx.DiGraph[str] = nx.DiGraph()
    for node in graph.module.graph.nodes:
        if node.op == "output":
            continue
        call = node.op == "call_function"
        tensor = node.meta["val"] if isinstance(node.meta["val"], torch.Tensor) else node.meta["val"][0]
        size = tensor.numel() * tensor.element_size()
        rule = rule_of(str(node.target))
        flops = rule.flops(op_of(node)) if call and rule else 0.0
        result.add_node(
            node.name,
            target=str(node.target) if call else node.meta["kind"],
            module=".".join(module_path(node)[-1:]) if call else node.meta["source"],
            module_path=module_path(node),
            unit=unit_of.get(node.name, ""),
            layer=layer_of.get(node.name),
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            forward_flops=flops,
            backward_flops=2 * flops,
            bytes=size,
            parameter_bytes=0 if call or node.meta["kind"] != "parameter" else size,
            saved_bytes=saved.get(node, 0),
        )
        result.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
    return result


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


def unit_names(graph: Graph) -> dict[str, Unit]:
    """Units by a name that is theirs alone: the module's, with #n behind from the second of that name on."""
    found: dict[str, Unit] = {}
    seen: dict[str, int] = {}
    for unit in graph.units:
        n = seen[unit.name] = seen.get(unit.name, 0) + 1
        found[unit.name if n == 1 else f"{unit.name}#{n}"] = unit
    return found


def stage_units(graph: Graph, stages: tuple[tuple[str, ...], ...]) -> list[list[Unit]]:
    """The units of each stage, checked to be all units in order."""
    known = unit_names(graph)
    flat = [name for stage in stages for name in stage]
    if flat != list(known):
        strange = next((n for n in flat if n not in known), None)
        missing = next((n for n in known if n not in flat), None)
        what = f"names {strange}" if strange else f"lacks {missing}" if missing else "has units out of order"
        raise InputError(f"the plan is for another model: its stages {what}; plan this model again")
    return [[known[name] for name in stage] for stage in stages]
