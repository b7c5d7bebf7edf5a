"""What backward keeps of a unit under the layouts that were chosen, by the rules."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torch import fx

from partitioner.cost.materialized import base, is_copy, readers, repeats_heads
from partitioner.cost.op_work import Setting, hidden_bytes, op_share, scores_kept
from partitioner.graph.nodes import is_parameter, is_tensor, operands, shape_of
from partitioner.graph.saved_by_autograd import hides, saved
from partitioner.layouts.op_kinds import is_attention, is_product
from partitioner.layouts.solution import Solution
from partitioner.precision import RECIPES
from partitioner.sharding.layout import Layout, is_same_memory
from partitioner.sharding.op_rules import rule_of

Placed = tuple[fx.Node, Layout]


class Keeping:
    """What backward keeps of a unit of ``group``; a view keeps all of what it views, parameters and constants
    nothing, but their parts in other layouts.

    A program may keep an activation in the few bits in which its product read it, beside what other ops need of it
    (``few``).

    What ops of ``without`` make for each other, and what is hidden in them, is not counted; what they read of others
    is, for they run again.
    """

    def __init__(
        self, setting: Setting, solution: Solution, group: int, without: frozenset[fx.Node] = frozenset()
    ) -> None:
        self.setting, self.solution, self.group, self.without = setting, solution, group, without
        self.folded = setting.folded
        self.savers: dict[Placed, list[fx.Node]] = {}
        self.storages: dict[Placed, float] = {}
        self.few: dict[Placed, set[float]] = {}
        for node in self.folded.body(group):
            if node in self.folded.differentiable and is_tensor(node):
                self._save(node)
            for value in operands(node) if node in self.without else ():
                if value not in self.without:
                    self._hold(node, value)

    @property
    def bytes(self) -> float:
        """All of it."""
        return sum(self.storages.values()) + sum(self.hidden.values())

    @cached_property
    def hidden(self) -> dict[fx.Node, float]:
        """Bytes that only an op and its backward see."""
        rows = ((n, self._hidden(n)) for n in self.folded.body(self.group) if is_tensor(n))
        return {node: size for node, size in rows if size}

    def _hidden(self, node: fx.Node) -> float:
        setting, strategy = self.setting, self.solution.strategies[node]
        if node not in self.folded.differentiable:
            return 0.0
        if setting.writes_scores(node):
            return 0.0 if node in self.without else scores_kept(setting, node, strategy)
        if not hides(node) or (node in self.without and not is_attention(node)):
            return 0.0
        return hidden_bytes(setting, node) * op_share(setting, node, strategy)

    def _save(self, node: fx.Node) -> None:
        repeats = repeats_heads(node) and node not in self.without
        copied = operands(node)[1:3] if repeats else []  # of which attention keeps repetitions
        for value in (v for v in saved(node, self.folded.differentiable) if v not in copied):
            self._hold(node, value)

    def _hold(self, node: fx.Node, value: fx.Node) -> None:
        layout = self._layout(node, value)
        if self.setting.software.regathers and is_product(node) and value is not node:
            layout = self.made(value)  # gathered once more beside the gradient of what was read
        key = self.lies(value, layout)
        outside = not self._is_port(key[0]) and key[0] not in self.folded.node and key[1] == self.made(key[0])
        rebuilt = node in self.without and key[0] in self.without
        if not outside and not rebuilt:
            for held in self._written(key):
                shares = self.few.setdefault(held, set())
                shares.add(self._share(node, value) if held == key else 1.0)
                self.storages[held] = self.setting.bytes(*held) * sum(shares)
                self.savers.setdefault(held, []).append(node)

    def _written(self, key: Placed) -> Iterable[Placed]:
        """A value, or of one that never leaves a fused kernel what enters that, from which backward makes it again,
        unless that is more."""
        if key[0] not in self.setting.internal:
            return (key,)
        read = [self.lies(v, self._layout(key[0], v)) for v in operands(key[0]) if is_tensor(v) and not is_parameter(v)]
        entering = dict.fromkeys(held for row in read for held in self._written(row))
        more = sum(self.setting.bytes(*held) for held in entering if held not in self.storages)
        return entering if more <= self.setting.bytes(*key) else (key,)

    def _share(self, node: fx.Node, value: fx.Node) -> float:
        """Of a value's bytes, what an op keeps of it."""
        recipe = self.setting.recipe(node) if self.setting.software.quantized_once else ""
        if not recipe or node in self.without or value is not operands(node)[0]:
            return 1.0
        return RECIPES[recipe].bytes / value.meta["val"].element_size()

    def lies(self, value: fx.Node, layout: Layout) -> Placed:
        """What memory a value in a layout lies in: its own, or that of what it is a view of."""
        while True:
            made = self.made(value)
            layout = made if is_same_memory(made, layout) else layout
            if layout != made or not self._is_view(value):
                return value, layout
            value, layout = operands(value)[0], self.solution.strategies[value].operands[0]

    def made(self, value: fx.Node) -> Layout:
        """How a value arrives or is made."""
        return self.solution.arrives(self.folded, self.group, value)

    def _is_port(self, value: fx.Node) -> bool:
        return (self.group, value) in self.folded.port_of

    def _is_view(self, value: fx.Node) -> bool:
        known = value in self.solution.strategies and not self._is_port(value)
        return known and base(value) is not value and not self.is_copy(value)

    def is_copy(self, node: fx.Node) -> bool:
        """Whether a view's result has memory of its own here: kernels that fuse read repeated heads where they lie, and
        a single head's repetitions (an expanded value, reshaped) need none where attention is one op."""
        return is_copy(node) and not self.setting.software.fused and not self._repeats_one(node)

    def _repeats_one(self, node: fx.Node) -> bool:
        source = operands(node)[0]
        if not all(is_attention(reader) for reader in readers(node)):
            return False
        if not _grows(source) or len(shape_of(source)) != len(shape_of(operands(source)[0])):
            return False
        pairs = enumerate(zip(shape_of(operands(source)[0]), shape_of(source), strict=True))
        repeated = [dim for dim, (before, after) in pairs if before != after]
        local = self.setting.local(source, self.solution.strategies[node].operands[0])
        return len(repeated) == 1 and repeated[0] > 0 and local[repeated[0] - 1] == 1

    def result(self, node: fx.Node) -> Layout:
        """How an op makes its result."""
        return self.solution.made(node)

    def _layout(self, node: fx.Node, value: fx.Node) -> Layout:
        """How ``node`` has the value that it keeps: as its result, or as an operand."""
        if value is node:
            return self.result(node)
        return self.solution.strategies[node].operands[operands(node).index(value)]


def _grows(node: fx.Node) -> bool:
    """Whether a node repeats dimensions of its operand."""
    rule = rule_of(str(node.target))
    return rule is not None and rule.literals is not None and rule.literals.kind == "grown"
