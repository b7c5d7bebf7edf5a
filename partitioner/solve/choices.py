"""What the layout search may choose, what each choice costs, and what conversions between choices cost.

choice    of an op: a strategy; of a port or a parameter: a placement; on one axis
read      a value and all that read it: each reader's choices say in which layouts it needs the value

A layout is a placement on that axis behind those on the axes that are laid out already. One conversion of a value
serves all of its readers that need the same layout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from torch import fx

from partitioner.cluster import Cluster
from partitioner.cost.communication import Routes, least_exposed, sent_by_op
from partitioner.cost.conversion_seconds import convert_seconds
from partitioner.cost.op_seconds import op_seconds
from partitioner.cost.op_work import Setting
from partitioner.cost.state_bytes import state, state_bytes
from partitioner.errors import InputError
from partitioner.graph.nodes import is_parameter, is_tensor, operands
from partitioner.graph.tied_blocks import Folded, Port, Value
from partitioner.kernel_seconds.collective import collective_seconds
from partitioner.layouts.strategies import Space
from partitioner.ops.collective_kinds import ALL_REDUCE
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import PARTIAL, REPLICATE, WHOLE, Layout, Placement, Shard, resized
from partitioner.sharding.mesh_axes import whole
from partitioner.sharding.op_rules import is_written

Allowed = Callable[[Value, Placement], bool]
TIE_BYTES = 1e-4  # of a byte's price: among equal times, hold fewer bytes
TIE_COLLECTIVE = 1e-9  # seconds: among equal bytes, fewer collectives


class NoLayout(InputError):
    """The pins leave no layout on this axis; on another degree of it they may."""


@dataclass(frozen=True)
class Choice:
    """One way to make a value: its seconds in a step's micro-batch, where it then lies, and an op's strategy."""

    seconds: float
    placement: Placement
    strategy: Strategy | None = None


@dataclass(frozen=True)
class Read:
    """``needs``: for each reader, by the number of its choice, the layouts in which it needs ``value``.

    A conversion happens ``count`` times in the model. ``in_place``: the value is memory that the reader writes to.
    """

    value: Value
    count: float
    needs: dict[Value, tuple[tuple[Layout, ...], ...]]
    in_place: bool = False


@dataclass(frozen=True)
class Prices:
    """What the objective adds up: work on a cluster, a step's sync over its micro-batches, seconds for a byte held.

    A byte of state costs ``scarcity`` passes of memory a micro-batch. Where that is more than one, memory is short, and
    a byte of an activation costs the same; else it only breaks ties.
    """

    cluster: Cluster
    setting: Setting
    micro_batches: int
    scarcity: float = 1.0

    @property
    def state_byte_seconds(self) -> float:
        """Of a byte that is held all the time."""
        return self.scarcity / self.cluster.device.memory_bytes_per_second

    @property
    def activation_byte_seconds(self) -> float:
        """Of a byte that an op makes."""
        return self.state_byte_seconds * (TIE_BYTES if self.scarcity <= 1 else 1.0)

    @cached_property
    def routes(self) -> Routes:
        """Between the ranks of each axis."""
        return self.setting.routes(self.cluster)

    @cached_property
    def exposed(self) -> float:
        """The share of a collective's seconds that is left where compute hides what it can."""
        return least_exposed(self.cluster.software)


def _activations(folded: Folded) -> set[fx.Node]:
    """Of the values with a gradient that units hand on the largest: what a boundary pin is about."""
    handed = {n for sources in folded.sources.values() for n in sources if n in folded.differentiable}
    most = max((n.meta["val"].numel() for n in handed), default=0)
    return {n for n in handed if n.meta["val"].numel() == most}


class Choices:
    """The choices of every value of a folded graph on the axis of ``options``. Raises NoLayout when pins leave a
    parameter or a port none."""

    def __init__(self, folded: Folded, options: Space, prices: Prices, allowed: Allowed) -> None:
        self.folded, self.options, self.prices, self.allowed = folded, options, prices, allowed
        self.left, self.axis, self.ranks = options.left, options.axis, options.ranks
        self.counts = {n: len(units) for g, units in enumerate(folded.groups) for n in folded.body(g)}
        self.of: dict[Value, tuple[Choice, ...]] = {}
        self.converted: dict[tuple[float, bool, Layout, Layout], float | None] = {}
        self.trained = {n: self.parameter_placements(n) for n in dict.fromkeys(folded.parameter.values())}
        self.of |= self.parameters()
        self.activations = _activations(folded)
        for port in folded.sources:
            self.of[port] = tuple(Choice(0.0, p) for p in self.port_placements(port))
        loss = next(n for n in folded.graph.module.graph.nodes if n.op == "output").all_input_nodes[0]
        for node, count in self.counts.items():
            rows = [Choice(self.op_cost(node, s, count), s.result, s) for s in options.strategies[node]]
            self.of[node] = tuple(c for c in rows if node is not folded.node[loss] or c.placement == WHOLE)

    def parameters(self) -> dict[Value, tuple[Choice, ...]]:
        """Their choices: the only ones whose price depends on how many micro-batches share a step."""
        return {n: tuple(Choice(self.parameter_cost(n, p), p) for p in rows) for n, rows in self.trained.items()}

    def at(self, micro_batches: int) -> Choices:
        """The same, where so many micro-batches share a step; what does not depend on it is shared."""
        found = copy.copy(self)
        found.prices = replace(self.prices, micro_batches=micro_batches)
        found.of = self.of | found.parameters()
        return found

    def parameter_placements(self, node: fx.Node) -> list[Placement]:
        found = [WHOLE, REPLICATE, *self.options.shards.get(node, ())] if self.ranks > 1 else [WHOLE]
        kept = [p for p in found if self.allowed(node, p)]
        if not kept:
            raise NoLayout(f"no layout of {node.meta['source']} satisfies the pins: relax one")
        return kept

    def port_placements(self, port: Port) -> list[Placement]:
        first, ranks = next(iter(self.folded.sources[port])), self.ranks
        shape, known = self.left.shape(first, port), self.options.shards
        found = [{resized(s, shape[s.dim], ranks) for s in known.get(node, ())} for node in self.folded.sources[port]]
        shards = [s for s in set[Shard | None].intersection(*found) if s is not None and self.left.is_even(port, s.dim)]
        divided = [REPLICATE, *sorted(s for s in shards if s.is_even(ranks))] if ranks > 1 else []
        kept = [p for p in (WHOLE, *divided) if self.allowed(port, p)]
        if not kept and first not in self.activations:  # a scale, a mask: no boundary is meant
            return [WHOLE, *divided]
        if not kept:
            unit = self.folded.groups[port.group][0].name
            raise NoLayout(
                f"pin boundary=sharded: {self.axis} {ranks} can't divide {first.name} evenly where it enters {unit}: "
                f"drop the pin, or pin another {whole(self.axis)}"
            )
        return kept

    def parameter_cost(self, node: fx.Node, placement: Placement) -> float:
        """State bytes at their price; a replicated gradient is summed once a step, shared by the micro-batches."""
        value, prices = node.meta["val"], self.prices
        elements = value.numel() * prices.setting.share(node, self.layout(node, placement))
        held = state_bytes(elements, value.dtype, self.folded.graph.precision) * prices.state_byte_seconds
        return held * self.folded.members[node] + self.sync_seconds(node, placement) / prices.micro_batches

    def sync_seconds(self, node: fx.Node, placement: Placement) -> float:
        """What summing a parameter's gradients over the axis takes once a step, in all of its units."""
        if placement != REPLICATE:
            return 0.0
        value = node.meta["val"]
        size = state(value.dtype, self.folded.graph.precision).gradient
        gradient = value.numel() * size * self.prices.setting.share(node, self.layout(node, REPLICATE))
        return collective_seconds(ALL_REDUCE, gradient, self.prices.routes[self.axis]) * self.folded.members[node]

    def op_cost(self, node: fx.Node, strategy: Strategy, count: int) -> float:
        prices, together = self.prices, self.left.together(node, strategy)
        seconds = op_seconds(prices.setting, node, together, prices.cluster).total
        moves = sent_by_op(prices.setting, node, together, prices.routes, prices.cluster)
        seconds += sum(move.seconds.total for move in moves) * prices.exposed
        held = prices.setting.bytes(node, together.result) * prices.activation_byte_seconds
        return (seconds + held) * count

    @cached_property
    def reads(self) -> list[Read]:
        """Every value with its readers inside a unit, and once more with each port that it enters, and each op that
        writes to it."""
        found: dict[tuple[Value, Value | None], dict[Value, list[tuple[Layout, ...]]]] = {}
        for g in range(len(self.folded.groups)):
            for node in self.folded.body(g):
                slots: dict[Value, list[int]] = {}
                for slot, operand in enumerate(operands(node)):
                    value = self.folded.value_of(g, operand)
                    if value is not None:
                        slots.setdefault(value, []).append(slot)
                for value, own in slots.items():
                    rows, writes = self.needed(node, own), 0 in own and is_written(str(node.target))
                    found.setdefault((value, node if writes else None), {})[node] = rows
        for port, sources in self.folded.sources.items():
            for source in sources:
                found.setdefault((source, port), {})[port] = [(self.layout(port, c.placement),) for c in self.of[port]]
        return [
            Read(value, self.count(value, by), {reader: tuple(rows) for reader, rows in needs.items()},
                 isinstance(by, fx.Node))
            for (value, by), needs in found.items()
        ]

    def needed(self, node: fx.Node, slots: list[int]) -> list[tuple[Layout, ...]]:
        """Of each choice of an op, the layouts in which it needs the value that is its operand in these places."""
        ahead, rows = [self.left.operand(node, slot) for slot in slots], list[tuple[Layout, ...]]()
        for choice in self.of[node]:
            assert choice.strategy is not None
            own = ((*a, choice.strategy.operands[slot]) for a, slot in zip(ahead, slots, strict=True))
            rows.append(tuple(dict.fromkeys(own)))
        return rows

    def layout(self, value: Value, placement: Placement) -> Layout:
        """How a value lies that is made so on the axis."""
        return (*self.left.made(value), placement)

    def count(self, value: Value, port: Value | None) -> float:
        """How often a value is converted: in each of its units, or at each entry into a port's."""
        if isinstance(port, Port):
            assert isinstance(value, fx.Node)
            return float(self.folded.sources[port][value])
        if isinstance(value, Port):
            return float(len(self.folded.groups[value.group]))
        return float(self.counts.get(value, 1))

    def conversion_cost(self, read: Read, source: Layout, target: Layout) -> float | None:
        """Seconds; None where no collectives do it."""
        value = read.value
        node = next(iter(self.folded.sources[value])) if isinstance(value, Port) else value
        if source == target:
            return 0.0
        if read.in_place:
            return None
        if is_parameter(node):
            rows = zip(source, target, self.prices.setting.axes, strict=True)
            return TIE_COLLECTIVE if all(_is_cut(a, b, ranks) for a, b, (_, ranks) in rows) else None
        if not is_tensor(node):
            return None
        setting = self.prices.setting
        size = setting.bytes(node, (*self.left.made(value), REPLICATE))
        key = size, node in self.folded.differentiable, source, target
        if key not in self.converted:
            seconds = convert_seconds(setting, node, source, target, self.prices.routes)
            total = None if seconds is None else seconds.total * self.prices.exposed
            self.converted[key] = None if total is None else total + TIE_COLLECTIVE
        return self.converted[key]


def _is_cut(source: Placement, target: Placement, ranks: int) -> bool:
    """Whether a parameter that lies so is read so, cut where it lies."""
    if source == target:
        return True
    if target == PARTIAL:
        return source in (WHOLE, REPLICATE)
    return source == REPLICATE and isinstance(target, Shard) and target.is_even(ranks)
