"""The layouts that were chosen: how each op runs, how each port and parameter lies, on each axis of the mesh."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from partitioner.graph.nodes import is_parameter, operands
from partitioner.graph.tied_blocks import Folded, Port, Value
from partitioner.sharding.equations import Strategies
from partitioner.sharding.layout import WHOLE, Layout, everywhere
from partitioner.sharding.mesh_axes import Axes


@dataclass(frozen=True)
class Solution:
    """The chosen strategies of every representative op, the layout of every port and representative parameter, on
    ``axes``.

    ``seconds`` is the objective where it was solved: a micro-batch of all blocks, its part of a sync, bytes held, of
    which each costs ``scarcity`` passes of memory.
    """

    axes: Axes
    strategies: dict[fx.Node, Strategies]
    ports: dict[Port, Layout]
    parameters: dict[fx.Node, Layout]
    seconds: float
    scarcity: float = 1.0

    def on(self, axes: Axes) -> Solution | None:
        """What of it lies along ``axes``, the first of its own; None for none of them."""
        many = len(axes)
        if not many:
            return None
        return replace(
            self, axes=axes, strategies={n: Strategies(s.each[:many]) for n, s in self.strategies.items()},
            ports={p: layout[:many] for p, layout in self.ports.items()},
            parameters={n: layout[:many] for n, layout in self.parameters.items()},
        )  # fmt: skip

    def made(self, value: Value) -> Layout:
        """How a value lies when it is made."""
        if isinstance(value, Port):
            return self.ports[value]
        return self.parameters[value] if value in self.parameters else self.strategies[value].result

    def arrives(self, folded: Folded, group: int, operand: fx.Node) -> Layout:
        """How an operand of a group's representative lies before it is converted."""
        value = folded.value_of(group, operand)
        return everywhere(WHOLE, self.axes) if value is None else self.made(value)


def group_layouts(folded: Folded, solution: Solution, group: int) -> tuple[object, ...]:
    """All of a solution that a group's units can see: their ops, their parameters, what enters, what it enters next."""
    body = folded.body(group)
    read = {folded.parameter[o] for node in body for o in operands(node) if is_parameter(o)}
    ports = [p for p, sources in folded.sources.items() if p.group == group or not sources.keys().isdisjoint(body)]
    return (
        *(solution.strategies[node] for node in body), *(solution.ports[port] for port in ports),
        *(solution.parameters[node] for node in folded.parameter.values() if node in read),
    )  # fmt: skip
