"""What a unit holds at its fullest moment, forward and backward: its ops walked, each tensor from birth to last use.

    forward     a value lives until its last reader has run; what backward keeps, and what is handed on, lives on
    backward    a gradient lives until its op has run; what an op kept is let go behind it

Eager torch's ways: an op's result exists beside its operands, sums pass their gradient on as it is, a second gradient
is added in place where nothing else holds the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from partitioner.collectives import Collective
from partitioner.fold import is_parameter
from partitioner.fusion import ATTENTION, base, is_copy
from partitioner.graph import loss_node
from partitioner.kept import Keeping, Key
from partitioner.layout import REPLICATE, Placement, Shard
from partitioner.price import conversion
from partitioner.rules import rule_of
from partitioner.shapes import operands, shape_of
from partitioner.strategies import is_tensor
from partitioner.work import is_bias, scores_bytes

Held = tuple[Key, float]
_SUMS = ("aten.add.Tensor", "aten.sub.Tensor")
_CROSS_ENTROPY = "partitioner.cross_entropy_sum.default"
_PERMUTE = "aten.permute.default"


class Peaks(NamedTuple):
    """Bytes above what earlier units keep. ``backward`` is a step's later ones, whose gradients of parameters come and
    go; in the ``first`` they come to stay, but those of tied parameters go to other stages; ``alone`` there are none.
    Each begins with what the unit keeps."""

    forward: float
    backward: float
    first: float
    alone: float


@dataclass(frozen=True)
class _Step:
    """One op or conversion of the lowered unit: what it makes, what it reads, and where its result lies."""

    made: Key
    reads: tuple[Key, ...]
    rows: tuple[Collective, ...] | None

    @property
    def is_conversion(self) -> bool:
        return self.rows is not None


Move = tuple[fx.Node, Placement, Placement]


class Liveness:
    """One unit's lowered ops and their tensors. ``moves``: conversions by the op that first needs them."""

    def __init__(self, keeping: Keeping, moves: dict[fx.Node | None, list[Move]]) -> None:
        self.keeping, self.setting, self.solution = keeping, keeping.setting, keeping.solution
        self.folded, self.group = keeping.setting.folded, keeping.group
        self.differentiable = self.folded.differentiable
        self.steps = list(self._steps(moves))
        self.ports = {n: self.solution.ports[p] for (g, n), p in self.folded.port_of.items() if g == self.group}
        self.joined = {step.reads[0]: step.made for step in self.steps if self._joins(step)}
        self.storage: dict[Key, Held] = {key: (key, self.bytes(key)) for key in self.ports.items()}
        for step in self.steps:
            self.storage[step.made] = self._storage(step)
        self.exported = list(self._exported())

    def _exported(self) -> Iterator[Key]:
        """What later units read, and the loss."""
        loss = loss_node(self.folded.sized.module.graph)
        for node in self.folded.body(self.group):
            yield from ((node, self.solution.ports[p]) for p, sources in self.folded.sources.items() if node in sources)
            if node is loss:
                yield node, self.keeping.result(node)

    def _steps(self, moves: dict[fx.Node | None, list[Move]]) -> Iterator[_Step]:
        for node in (*self.folded.body(self.group), None):
            for value, source, target in moves.get(node, ()):
                rows = conversion(source, target, self.setting.ranks, value in self.differentiable)
                yield _Step((value, target), ((value, source),), rows or ())
            if node is not None and is_tensor(node):
                yield _Step((node, self.keeping.result(node)), tuple(self._reads(node)), None)

    def _reads(self, node: fx.Node) -> list[Key]:
        return list(zip(operands(node), self.solution.strategies[node].operands, strict=True))

    def bytes(self, key: Key) -> float:
        """Of a value that lies in memory."""
        return 0.0 if key[0] in self.setting.internal else self.setting.bytes(*key)

    def _joins(self, step: _Step) -> bool:
        """Whether an op's result replaces its operand in its place: a bias in its product, a sum over ranks."""
        node = step.made[0]
        if step.rows is not None:
            return [row.op for row in step.rows] == ["all_reduce"] and _is_product(node) and len(node.users) == 1
        return is_bias(node) and step.reads[0][1] == self.keeping.made(operands(node)[0])

    def is_view(self, step: _Step) -> bool:
        """Whether a result lies in its operand's memory as it is."""
        if step.rows is not None:
            return [row.op for row in step.rows] in ([], ["copy"])
        rule = rule_of(str(step.made[0].target))
        return rule is not None and rule.view and (self.setting.fused or not is_copy(step.made[0]))

    def _storage(self, step: _Step) -> Held:
        """Where a result lies: in memory of its own, or in that of what it is made of."""
        if self.is_view(step):
            return self.storage.get(step.reads[0], (step.reads[0], 0.0))
        key = step.made
        while key in self.joined:
            key = self.joined[key]
        return key, self.bytes(key)

    def peaks(self) -> Peaks:
        """Of a unit of which nothing is recomputed."""
        return Peaks(self.forward(), *_Backward(self).run())

    def forward(self, keeps: bool = True) -> float:
        """The fullest moment of the forward; ``keeps``: whether what backward needs stays."""
        last: dict[Key, int] = {}
        for n, step in enumerate(self.steps):
            for key in (*step.reads, step.made):
                last[self.lies(key)] = n
        stay = {self.lies(k) for k in self.exported} | set(self.ports.items())
        stay |= self.keeping.storages.keys() if keeps else set()
        alive = dict(self.storage[key] for key in self.ports.items())
        hidden = fullest = 0.0
        for n, step in enumerate(self.steps):
            alive.update([self.storage[step.made]])
            own = 0.0 if step.rows is not None else self.keeping.hidden.get(step.made[0], 0.0)
            fullest = max(fullest, sum(alive.values()) + hidden + own + self.packed(step, "forward"))
            hidden += own if keeps else 0.0
            for key in {self.lies(k) for k in (*step.reads, step.made)}:
                if last[key] == n and key not in stay:
                    alive.pop(key, None)
        return fullest

    def lies(self, key: Key) -> Key:
        """The memory that holds a value."""
        return self.storage[key][0] if key in self.storage else key

    def packed(self, step: _Step, phase: str) -> float:
        """Bytes of the copies that a conversion makes whose parts lie one behind the other."""
        node, rows = step.made[0], step.rows or ()
        whole = self.bytes((node, REPLICATE)) if rows else 0.0
        kinds = [row.forward if phase == "forward" else row.backward for row in rows]
        return sum(_packed(k, r, shape_of(node), whole, self.setting.ranks) for k, r in zip(kinds, rows, strict=True))


def _packed(kind: str, row: Collective, shape: tuple[int, ...], whole: float, ranks: int) -> float:
    """Bytes of the copy whose parts lie one behind the other, where those of the value don't."""
    dims = [row.arguments[n] for n in (0, 2) if n < len(row.arguments) and isinstance(row.arguments[n], int)]
    lies_so = all(dim == 0 or all(n == 1 for n in shape[: int(str(dim))]) for dim in dims)
    if kind == "all_to_all":
        return 2 * whole / ranks
    return whole if kind in ("all_gather", "reduce_scatter") and not lies_so else 0.0


def _is_product(node: fx.Node) -> bool:
    return str(node.target) in ("aten.linear.default", "aten.matmul.default", "aten.embedding.default")


class _Gradient:
    """A gradient's memory, by how many it is held; ``dense``: whether its elements lie in its value's order."""

    def __init__(self, size: float, dense: bool = True) -> None:
        self.size, self.dense, self.holders = size, dense, 1


class _Backward:
    """The walk back. ``now``: gradients and what is still kept; ``grown``: of parameters."""

    def __init__(self, live: Liveness) -> None:
        self.live, self.keeping = live, live.keeping
        self.pending: dict[Key, _Gradient] = {}
        self.now = self.grown = self.tied = 0.0
        self.fullest = self.first = self.alone = 0.0
        self.savers = {key: set(nodes) for key, nodes in live.keeping.savers.items()}

    def run(self) -> tuple[float, float, float]:
        self.now = sum(self.keeping.storages.values()) + sum(self.keeping.hidden.values())
        for key in dict.fromkeys(self.live.exported):
            if key[0] in self.live.differentiable:
                self.give(key, self.new(self.live.bytes(key)))
        for step in reversed(self.live.steps):
            if step.made[0] in self.live.differentiable:
                self.back(step)
                self.let_go(step)
        self.see()
        return self.fullest, self.first, self.alone

    def see(self, weights: float = 0.0, temporary: float = 0.0) -> None:
        """Note how full it is; ``weights``: bytes of parameters' gradients that were just made."""
        now = self.now + weights + temporary
        self.fullest, self.first = max(self.fullest, now), max(self.first, now + self.grown)
        self.alone = max(self.alone, now + self.grown + self.tied)

    def new(self, size: float, dense: bool = True) -> _Gradient:
        self.now += size
        return _Gradient(size, dense)

    def drop(self, gradient: _Gradient) -> None:
        gradient.holders -= 1
        if not gradient.holders:
            self.now -= gradient.size

    def give(self, key: Key, gradient: _Gradient) -> None:
        """One more gradient of a value."""
        old = self.pending.get(key)
        if old is None:
            self.pending[key] = gradient
        elif old.holders == 1:
            self.see()
            self.drop(gradient)
        else:
            self.pending[key] = self.new(self.live.bytes(key))
            self.see()
            self.drop(old)
            self.drop(gradient)

    def back(self, step: _Step) -> None:
        gradient = self.pending.pop(step.made, None)
        if gradient is None:
            return
        if step.rows is not None:
            self.convert(step, gradient)
        elif self.live.is_view(step):
            self.view(step, gradient)
        elif str(step.made[0].target) in _SUMS or is_bias(step.made[0]):
            self.add(step, gradient)
        else:
            self.differentiate(step, gradient)
        self.drop(gradient)

    def convert(self, step: _Step, gradient: _Gradient) -> None:
        """A sum's gradient passes, or is summed in a copy; else it is gathered, scattered, exchanged."""
        rows = step.rows or ()
        names = [row.op for row in rows]
        if names in ([], ["on_first"]) or (names == ["all_reduce"] and not rows[0].backward):
            gradient.holders += 1
            self.give(step.reads[0], gradient)
            return
        made = self.new(self.live.bytes(step.reads[0]))
        if names == ["copy"] and gradient.holders == 1:
            self.drop(made)  # the linears' common gradient is summed where it lies
            gradient.holders += 1
            made = gradient
        self.see(temporary=self.live.packed(step, "backward"))
        self.give(step.reads[0], made)

    def view(self, step: _Step, gradient: _Gradient) -> None:
        """A view's gradient is a view of it, of a part it is a part of zeros, of repeated ones a sum."""
        node, source = step.made[0], step.reads[0]
        if source[0] not in self.live.differentiable:
            return
        if is_parameter(base(node)):
            self.weights([source])
        elif self.live.bytes(source) != self.live.bytes(step.made):
            made = self.new(self.live.bytes(source))
            self.see()
            self.give(source, made)
        else:
            permuted = str(node.target) == _PERMUTE
            if not permuted and not gradient.dense:
                made = self.new(self.live.bytes(source))
                self.see()
                self.give(source, made)
                return
            if permuted:
                gradient.dense = not gradient.dense
            gradient.holders += 1
            self.give(source, gradient)

    def add(self, step: _Step, gradient: _Gradient) -> None:
        for key in step.reads:
            if key[0] in self.live.differentiable and is_tensor(key[0]):
                if is_parameter(base(key[0])):
                    self.weights([key])
                elif self.live.bytes(key) == self.live.bytes(step.made):
                    gradient.holders += 1
                    self.give(key, gradient)
                else:
                    self.give(key, self.new(self.live.bytes(key)))
                    self.see()

    def weights(self, keys: list[Key], temporary: float = 0.0) -> None:
        """Gradients of parameters are made; those that ranks sum go to their buckets."""
        self.see(sum(self.live.setting.bytes(*key) for key in keys), temporary)
        for node, placement in keys:
            size = self.live.setting.bytes(node, placement)
            if base(node) in self.live.setting.tied:
                self.tied += size
            elif placement != REPLICATE:
                self.grown += size

    def differentiate(self, step: _Step, gradient: _Gradient) -> None:
        """All gradients of an op's operands exist before any is added to another."""
        node = step.made[0]
        trained = [k for k in step.reads if k[0] in self.live.differentiable and is_tensor(k[0])]
        inside = [k for k in dict.fromkeys(trained) if not is_parameter(base(k[0]))]
        made: list[_Gradient] = []
        for key in inside:
            joins = _is_product(node) and key in self.pending and self.pending[key].holders == 1
            made.append(self.new(0.0 if joins else self.live.bytes(key), str(node.target) != ATTENTION))
        self.weights([k for k in trained if is_parameter(base(k[0]))], self.scratch(step))
        for key, found in zip(inside, made, strict=True):
            self.give(key, found)

    def scratch(self, step: _Step) -> float:
        """What an op's backward has of its own: cross entropy the gradient of the log-softmax, math attention of the
        softmax."""
        node = step.made[0]
        if str(node.target) == _CROSS_ENTROPY:
            divided = isinstance(step.reads[0][1], Shard)
            size = self.keeping.hidden.get(node, 0.0)
            return -size if divided else size  # the divided one turns its log-softmax into the gradient in place
        if str(node.target) == ATTENTION and self.live.setting.attention == "math":
            return 2 * scores_bytes(self.live.setting, node, self.live.solution.strategies[node])
        return 0.0

    def let_go(self, step: _Step) -> None:
        """What only this op still needed."""
        if step.is_conversion:
            return
        node = step.made[0]
        self.now -= self.keeping.hidden.get(node, 0.0)
        for key, nodes in self.savers.items():
            if node in nodes:
                nodes.discard(node)
                if not nodes:
                    self.now -= self.keeping.storages[key]
