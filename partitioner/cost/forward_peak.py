"""What a unit's forward holds at its fullest moment: its lowered ops walked, each tensor from birth to last use.

A value lives until its last reader has run, beside whose result it exists; what backward keeps, and what is handed on,
lives on.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from partitioner.cost.kept_activations import Keeping, Placed
from partitioner.graph.graph import loss_node
from partitioner.graph.nodes import is_tensor, op_name, operands, shape_of
from partitioner.layouts.conversions import Conversion, hops_of
from partitioner.layouts.op_kinds import biased
from partitioner.ops.collective_kinds import KINDS
from partitioner.ops.collectives import OPS
from partitioner.ops.conversions import Hop
from partitioner.sharding.layout import largest_shape
from partitioner.sharding.op_rules import rule_of


@dataclass(frozen=True)
class Kept:
    """Bytes of what lies between forward and backward: results by the memory in which they lie, and what is hidden in
    ops."""

    results: Mapping[Placed, float]
    hidden: Mapping[fx.Node, float]


PlacedBytes = tuple[Placed, float]


@dataclass(frozen=True)
class Step:
    """One op of the lowered unit, or a conversion by a collective, or by none (``hops``): what it makes and reads."""

    made: Placed
    reads: tuple[Placed, ...]
    hops: tuple[Hop, ...] | None

    @property
    def is_conversion(self) -> bool:
        return self.hops is not None


class Liveness:
    """One unit's lowered ops and their tensors. ``moves``: conversions by the op that first needs them."""

    def __init__(self, keeping: Keeping, moves: dict[fx.Node | None, list[Conversion]]) -> None:
        self.keeping, self.setting, self.solution = keeping, keeping.setting, keeping.solution
        self.folded, self.group = keeping.setting.folded, keeping.group
        self.differentiable = self.folded.differentiable
        self.steps = list(self._steps(moves))
        self.ports = {n: self.solution.ports[p] for n, p in self.folded.inputs(self.group)}
        self.joined = {self._joined(step): step.made for step in self.steps if self._joins(step)}
        self.storage: dict[Placed, PlacedBytes] = {key: (key, self.bytes(key)) for key in self.ports.items()}
        for step in self.steps:
            self.storage[step.made] = self._storage(step)
        self.exported = list(self._exported())
        whole = {self.lies(key) for key in (*self.exported, *self.ports.items())}
        self.few = {key for key, shares in keeping.few.items() if shares != {1.0} and key not in whole}

    def _exported(self) -> Iterator[Placed]:
        """What later units read, and the loss."""
        loss = loss_node(self.folded.sized.module.graph)
        yield from ((node, self.solution.ports[port]) for node, port in self.folded.handed_on(self.group))
        if loss in self.folded.body(self.group):
            yield loss, self.keeping.made(loss)

    def _steps(self, moves: dict[fx.Node | None, list[Conversion]]) -> Iterator[Step]:
        for node in (*self.folded.body(self.group), None):
            for move in moves.get(node, ()):
                yield from self._converted(move)
            if node is not None and is_tensor(node):
                yield Step((node, self.keeping.result(node)), tuple(self._reads(node)), None)

    def _converted(self, move: Conversion) -> Iterator[Step]:
        now = (move.value, move.source)
        for hop in hops_of(move, self.setting.axes, move.value in self.differentiable):
            yield Step((move.value, hop.made), (now,), (hop,))
            now = (move.value, hop.made)
        if now[1] != move.target:
            yield Step((move.value, move.target), (now,), ())

    def _reads(self, node: fx.Node) -> list[Placed]:
        return list(zip(operands(node), self.solution.strategies[node].operands, strict=True))

    def bytes(self, key: Placed) -> float:
        """Of a value that lies in memory."""
        return 0.0 if key[0] in self.setting.internal else self.setting.bytes(*key)

    def _joins(self, step: Step) -> bool:
        """Whether an op's result replaces its operand in its place: a bias in its product, a sum over ranks."""
        node = step.made[0]
        if step.hops is not None:
            kinds = [KINDS[hop.row.forward] if hop.row.forward else None for hop in step.hops]
            summed = bool(kinds) and all(kind is not None and kind.in_place for kind in kinds)
            return summed and is_fresh(node) and len(node.users) == 1
        place = biased(node)
        return place is not None and step.reads[place][1] == self.keeping.made(operands(node)[place])

    def _joined(self, step: Step) -> Placed:
        """What it replaces."""
        return step.reads[0 if step.hops is not None else biased(step.made[0]) or 0]

    def is_view(self, step: Step) -> bool:
        """Whether a result lies in its operand's memory as it is."""
        if step.hops is not None:
            return all(OPS[hop.row.op].view for hop in step.hops)
        rule = rule_of(str(step.made[0].target))
        return rule is not None and rule.view and not self.keeping.is_copy(step.made[0])

    def _storage(self, step: Step) -> PlacedBytes:
        """Where a result lies: in memory of its own, or in that of what it is made of."""
        if self.is_view(step):
            return self.storage.get(step.reads[0], (step.reads[0], 0.0))
        key = step.made
        while key in self.joined:
            key = self.joined[key]
        return key, self.bytes(key)

    def forward(self, kept: Kept | None = None) -> float:
        """The fullest moment of the forward, of which ``kept`` stays; None: what backward needs."""
        staying = Kept(self.keeping.storages, self.keeping.hidden) if kept is None else kept
        stay = {self.lies(k) for k in self.exported} | set(self.ports.items()) | staying.results.keys()
        return self._fullest(self.steps, stay, staying.hidden.keys(), Kept({}, {}))

    def again(
        self, kept: Kept, passed: Container[Placed], ends: Container[fx.Node], begun: Container[fx.Node]
    ) -> float:
        """The fullest moment as the unit runs again with what was ``kept``, up to the op of ``ends``, which is done or
        only ``begun``.

        What backward needs stays. A result that was ``passed`` to a collective is none any more.
        """
        rows = ((n, step.made[0]) for n, step in enumerate(self.steps) if not step.is_conversion)
        last = next((n + (node not in begun) for n, node in rows if node in ends), None)
        steps = [step for step in self.steps[:last] if step.made not in passed]
        stay = set(self.ports.items()) | self.keeping.storages.keys()
        return self._fullest(steps, stay, self.keeping.hidden.keys(), kept)

    def _fullest(
        self, steps: Sequence[Step], stay: Container[Placed], hidden_stays: Container[fx.Node], held: Kept
    ) -> float:
        last: dict[Placed, int] = {}
        for n, step in enumerate(steps):
            for key in (*step.reads, step.made):
                last[self.lies(key)] = n
        alive = {**dict(self.storage[key] for key in self.ports.items()), **held.results}
        hidden, fullest = sum(held.hidden.values()), 0.0
        for n, step in enumerate(steps):
            alive.update([self.storage[step.made]])
            is_op = not step.is_conversion and step.made[0] not in held.hidden
            own = self.keeping.hidden.get(step.made[0], 0.0) if is_op else 0.0
            packed = 0.0 if self.lies(step.made) in held.results else self.packed(step, "forward")
            fullest = max(fullest, sum(alive.values()) + hidden + own + packed)
            hidden += own if step.made[0] in hidden_stays else 0.0
            for key in {self.lies(k) for k in (*step.reads, step.made)}:
                if last[key] == n and key not in stay:
                    alive.pop(key, None)
                elif last[key] == n and key in self.few:
                    alive[key] = self.keeping.storages[key]
        return fullest

    def lies(self, key: Placed) -> Placed:
        """The memory that holds a value."""
        return self.storage[key][0] if key in self.storage else key

    def packed(self, step: Step, phase: str) -> float:
        """Bytes of the copies that a conversion makes whose parts lie one behind the other."""
        node, axes = step.made[0], self.setting.axes
        return sum(
            _packed(hop, phase, largest_shape(shape_of(node), hop.whole, axes), self.bytes((node, hop.whole)))
            for hop in step.hops or ()
        )


def _packed(hop: Hop, phase: str, shape: tuple[int, ...], whole: float) -> float:
    """Bytes of the copy whose parts lie one behind the other, where those of the value don't."""
    kind = hop.sent(phase)
    copies = KINDS[kind].copies * hop.payload(whole, phase) if kind else 0.0
    if not copies or KINDS[kind].own_part:
        return copies
    return 0.0 if OPS[hop.row.op].in_order(shape, *hop.row.arguments) else copies


def is_fresh(node: fx.Node) -> bool:
    """Whether an op makes sums over its operands' dimensions that backward does not need."""
    rule = rule_of(op_name(node.target))
    return rule is not None and (rule.lookup or bool(rule.weight))
