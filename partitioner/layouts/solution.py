"""The layouts that were chosen: a strategy an op, a placement a port and a parameter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from partitioner.graph.tied_blocks import Port
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import Placement


@dataclass(frozen=True)
class Solution:
    """The chosen strategy of every representative op, the placement of every port and representative parameter.

    ``seconds`` is the objective: one micro-batch of all blocks, a step's gradient sync and the price of bytes held.
    """

    strategies: dict[fx.Node, Strategy]
    ports: dict[Port, Placement]
    parameters: dict[fx.Node, Placement]
    seconds: float

    def made(self, value: Value) -> Placement:
        """Where a value lies when it is made."""
        if isinstance(value, Port):
            return self.ports[value]
        if value in self.parameters:
            return self.parameters[value]
        result = self.strategies[value].result
        assert not isinstance(result, tuple)
        return result


Value = fx.Node | Port
