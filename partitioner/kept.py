"""What backward keeps of a unit under the layouts that were chosen, by the rules."""

from __future__ import annotations

from torch import fx

from partitioner.equations import Strategy
from partitioner.fusion import ATTENTION, base, is_copy
from partitioner.layout import Placement
from partitioner.rules import rule_of
from partitioner.saved import saved
from partitioner.shapes import operands
from partitioner.solve import Solution
from partitioner.strategies import is_tensor
from partitioner.work import Setting, hidden_bytes, op_share, scores_kept


def saved_bytes(
    setting: Setting, solution: Solution, group: int, without: frozenset[fx.Node] = frozenset()
) -> float:
    """Bytes that backward keeps of one unit, by the rules; a view keeps all of what it views, a parameter nothing.

    What ops of ``without`` make for each other, and what is hidden in them, is not counted.
    """
    kept: dict[tuple[fx.Node, Placement], float] = {}
    folded, hidden = setting.folded, 0.0
    for node in folded.body(group):
        rule, strategy = rule_of(str(node.target)), solution.strategies[node]
        if node not in folded.differentiable or not is_tensor(node):
            continue
        if node in without and (str(node.target) != ATTENTION or setting.attention == "math"):
            pass
        elif str(node.target) == ATTENTION and setting.attention == "math":
            hidden += scores_kept(setting, node, strategy)
        elif rule and rule.hidden:
            hidden += hidden_bytes(setting, node) * op_share(setting, node, strategy)
        for value in saved(node, folded.differentiable):
            source, placement = _stored(setting, value), _placement(node, strategy, value)
            outside = source not in folded.node and (group, source) not in folded.port_of
            rebuilt = node in without and source in without
            if not outside and not rebuilt and source not in setting.internal:
                port = folded.port_of.get((group, source))
                whole = solution.made(port if port is not None else source)
                held = (value, placement) if source is value else (source, whole)
                kept[held] = setting.bytes(*held)
    return hidden + sum(kept.values())


def _stored(setting: Setting, node: fx.Node) -> fx.Node:
    """The node whose memory a value lies in."""
    while not (is_copy(node) and not setting.fused) and base(node) is not node:
        node = operands(node)[0]
    return node


def _placement(node: fx.Node, strategy: Strategy, value: fx.Node) -> Placement:
    """How ``node`` has the value that it keeps: as its result, or as an operand."""
    found = strategy.result if value is node else strategy.operands[operands(node).index(value)]
    assert not isinstance(found, tuple)
    return found
