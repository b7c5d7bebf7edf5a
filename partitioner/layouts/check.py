"""Are these layouts legal? They may come from a plan file, so what is wrong with them is an InputError."""

from __future__ import annotations

from partitioner.errors import InputError
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.solution import Solution
from partitioner.layouts.strategies import space


def check_layouts(folded: Folded, solution: Solution) -> None:
    """Every op runs in a way that its rule allows on each axis; raises InputError naming the first that does not."""
    for n, (axis, ranks) in enumerate(solution.axes):
        options = space(folded, axis, ranks, solution.on(solution.axes[:n])).strategies
        for node, strategies in solution.strategies.items():
            strategy = strategies.each[n]
            if strategy not in options[node]:
                operands = ", ".join(map(str, strategy.operands))
                raise InputError(
                    f"the plan runs {node.name} over {axis} as {operands} -> {strategy.result}, "
                    f"which the rule of {node.target} does not allow: plan again"
                )
