"""The layouts that were chosen: a strategy an op, a placement a port and a parameter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from partitioner.graph.nodes import is_parameter, operands
from partitioner.graph.tied_blocks import Folded, Port, Value
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import WHOLE, Placement


@dataclass(frozen=True)
class Solution:
    """The chosen strategy of every representative op, the placement of every port and representative parameter.

    ``seconds`` is the objective where it was solved: a micro-batch of all blocks, its part of a sync, bytes held, of
    which each costs ``scarcity`` passes of memory.
    """

    strategies: dict[fx.Node, Strategy]
    ports: dict[Port, Placement]
    parameters: dict[fx.Node, Placement]
    seconds: float
    scarcity: float = 1.0

    def made(self, value: Value) -> Placement:
        """Where a value lies when it is made."""
        if isinstance(value, Port):
            return self.ports[value]
        if value in self.parameters:
            return self.parameters[value]
        result = self.strategies[value].result
        assert not isinstance(result, tuple)
        return result

    def arrives(self, folded: Folded, group: int, operand: fx.Node) -> Placement:
        """Where an operand of a group's representative lies before it is converted."""
        value = folded.value_of(group, operand)
        return WHOLE if value is None else self.made(value)


def group_layouts(folded: Folded, solution: Solution, group: int) -> tuple[object, ...]:
    """All of a solution that a group's units can see: their ops, their parameters, what enters, what it enters next."""
    body = folded.body(group)
    read = {folded.parameter[o] for node in body for o in operands(node) if is_parameter(o)}
    ports = [p for p, sources in folded.sources.items() if p.group == group or not sources.keys().isdisjoint(body)]
    return (
        *(solution.strategies[node] for node in body), *(solution.ports[port] for port in ports),
        *(solution.parameters[node] for node in folded.parameter.values() if node in read),
    )  # fmt: skip
