"""Are these layouts legal? They may come from a plan file, so what is wrong with them is an InputError."""

from __future__ import annotations

from partitioner.errors import InputError
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.solution import Solution
from partitioner.layouts.strategies import space


def check_layouts(folded: Folded, solution: Solution, ranks: int) -> None:
    """Every op runs in a way that its rule allows on ``ranks``; raises InputError naming the first that does not."""
    options = space(folded, ranks).strategies
    for node, strategy in solution.strategies.items():
        if strategy not in options[node]:
            operands = ", ".join(map(str, strategy.operands))
            raise InputError(
                f"the plan runs {node.name} as {operands} -> {strategy.result}, "
                f"which the rule of {node.target} does not allow: plan again"
            )
