"""Are these layouts legal? They may come from a plan file, so what is wrong with them is an InputError."""

from __future__ import annotations

from torch import fx

from partitioner.errors import InputError
from partitioner.graph.nodes import is_tensor, operands, shape_of
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.conversions import conversions
from partitioner.layouts.solution import Solution
from partitioner.layouts.strategies import space
from partitioner.ops.conversions import conversion
from partitioner.sharding.layout import Layout, Shard, largest_shape, layout_word
from partitioner.sharding.op_rules import is_written


def check_layouts(folded: Folded, solution: Solution) -> None:
    """Every op runs in a way that its rule allows on each axis, what is divided is as large as its parts say, and
    collectives lead from each layout to the next; raises InputError naming the first that is not so."""
    _check_sizes(folded, solution)
    for group in range(len(folded.groups)):
        for move in (move for rows in conversions(folded, solution, group).values() for move in rows):
            if conversion(move.source, move.target, solution.axes, move.value in folded.differentiable) is None:
                raise InputError(
                    f"the plan turns {move.value.name} from {layout_word(move.source)} into "
                    f"{layout_word(move.target)}, which no collectives do: plan again"
                )
        _check_written(folded, solution, group)
    for n, (axis, ranks) in enumerate(solution.axes):
        options = space(folded, axis, ranks, solution.on(solution.axes[:n])).strategies
        for node, strategies in solution.strategies.items():
            strategy = strategies.each[n]
            if strategy not in options[node]:
                read = ", ".join(map(str, strategy.operands))
                raise InputError(
                    f"the plan runs {node.name} over {axis} as {read} -> {strategy.result}, "
                    f"which the rule of {node.target} does not allow: plan again"
                )


def _check_written(folded: Folded, solution: Solution, group: int) -> None:
    for node in folded.body(group):
        if is_written(str(node.target)):
            memory, target = operands(node)[0], solution.strategies[node].operands[0]
            if (lies := solution.arrives(folded, group, memory)) != target:
                raise InputError(
                    f"the plan has {node.name} write to {layout_word(target)} of {memory.name}, which lies as "
                    f"{layout_word(lies)}: plan again"
                )


def _check_sizes(folded: Folded, solution: Solution) -> None:
    values: list[tuple[fx.Node, Layout]] = [*solution.parameters.items()]
    values += [(next(iter(folded.sources[port])), layout) for port, layout in solution.ports.items()]
    values += [(node, strategies.result) for node, strategies in solution.strategies.items() if is_tensor(node)]
    for node, layout in values:
        for n, placement in enumerate(layout):
            left = largest_shape(shape_of(node), layout[:n], solution.axes[:n]) if is_tensor(node) else ()
            if isinstance(placement, Shard) and (placement.dim >= len(left) or placement.size != left[placement.dim]):
                raise InputError(
                    f"the plan divides {node.name} as {layout_word(layout)}, and {solution.axes[n][0]} finds "
                    f"{' x '.join(map(str, left))} there: plan again"
                )
