"""What a unit's backward holds at its fullest moment: its ops walked back, gradients from birth to last use.

A gradient lives until its op has run; what the op kept is let go behind it. Eager torch's ways: sums pass their
gradient on as it is, a second gradient of a value is added in place where nothing else holds the first.
"""

from __future__ import annotations

from typing import NamedTuple

from partitioner.cost.forward_peak import Liveness, Step, is_fresh
from partitioner.cost.kept_activations import Placed
from partitioner.cost.materialized import base
from partitioner.cost.op_work import scores_bytes
from partitioner.graph.nodes import is_parameter, is_tensor
from partitioner.layouts.op_kinds import is_attention
from partitioner.ops.collectives import OPS
from partitioner.sharding.layout import REPLICATE
from partitioner.sharding.op_equations import undivided
from partitioner.sharding.op_rules import rule_of
from partitioner.sharding.rule import Rule


class Peaks(NamedTuple):
    """Bytes above what earlier units keep. ``backward`` is a step's later ones, whose gradients of parameters come and
    go; in the ``first`` they come to stay, but those of tied parameters go to other stages; ``alone`` there are none.
    Each begins with what the unit keeps."""

    forward: float
    backward: float
    first: float
    alone: float


class StagePeaks(NamedTuple):
    """Of a stage, ``Peaks``, and those where ZeRO divides state: of forwards, of backwards and of a step's first
    backward by its stage; of the last backward of a step, when no other micro-batch is there; and of a step's only
    backward."""

    forward: float
    backward: float
    first: float
    alone: float
    forward_2: float = 0.0
    forward_3: float = 0.0
    backward_1: float = 0.0
    backward_2: float = 0.0
    backward_3: float = 0.0
    first_2: float = 0.0
    first_3: float = 0.0
    last_1: float = 0.0
    last_2: float = 0.0
    only_2: float = 0.0


def peaks(live: Liveness, sent_back: bool = False) -> Peaks:
    """Of a unit of which nothing is recomputed. ``sent_back``: the gradients of what it hands on come of another stage,
    and stay all through its backward, for who calls that holds them."""
    return Peaks(live.forward(), *_Backward(live, sent_back).run())


class _Gradient:
    """A gradient's memory, by how many it is held; ``dense``: whether its elements lie in its value's order."""

    def __init__(self, size: float, dense: bool = True) -> None:
        self.size, self.dense, self.holders = size, dense, 1


class _Backward:
    """The walk back. ``now``: gradients and what is still kept; ``grown``: of parameters."""

    def __init__(self, live: Liveness, sent_back: bool) -> None:
        self.live, self.keeping, self.callers = live, live.keeping, int(sent_back)
        self.pending: dict[Placed, _Gradient] = {}
        self.now = self.grown = self.tied = 0.0
        self.fullest = self.first = self.alone = 0.0
        self.savers = {key: set(nodes) for key, nodes in live.keeping.savers.items()}

    def run(self) -> tuple[float, float, float]:
        self.now = sum(self.keeping.storages.values()) + sum(self.keeping.hidden.values())
        for key in dict.fromkeys(self.live.exported):
            if key[0] in self.live.differentiable:
                gradient = self.new(self.live.bytes(key))
                gradient.holders += self.callers
                self.give(key, gradient)
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

    def give(self, key: Placed, gradient: _Gradient) -> None:
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

    def back(self, step: Step) -> None:
        gradient = self.pending.pop(step.made, None)
        if gradient is None:
            return
        if step.is_conversion:
            self.convert(step, gradient)
        elif self.live.is_view(step):
            self.view(step, gradient)
        elif _rule(step).sum:
            self.add(step, gradient)
        else:
            self.differentiate(step, gradient)
        self.drop(gradient)

    def convert(self, step: Step, gradient: _Gradient) -> None:
        """A sum's gradient passes, or is summed in a copy; else it is gathered, scattered, exchanged."""
        rows = [hop.row for hop in step.hops or ()]
        if all(OPS[row.op].passes and not row.backward for row in rows):
            gradient.holders += 1
            self.give(step.reads[0], gradient)
            return
        made = self.new(self.live.bytes(step.reads[0]))
        if all(OPS[row.op].view for row in rows) and gradient.holders == 1:
            self.drop(made)  # the linears' common gradient is summed where it lies
            gradient.holders += 1
            made = gradient
        self.see(temporary=self.live.packed(step, "backward"))
        self.give(step.reads[0], made)

    def view(self, step: Step, gradient: _Gradient) -> None:
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
            permuted = _rule(step).reorders
            if not permuted and not gradient.dense:
                made = self.new(self.live.bytes(source))
                self.see()
                self.give(source, made)
                return
            if permuted:
                gradient.dense = not gradient.dense
            gradient.holders += 1
            self.give(source, gradient)

    def add(self, step: Step, gradient: _Gradient) -> None:
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

    def weights(self, keys: list[Placed], temporary: float = 0.0) -> None:
        """Gradients of parameters are made; those that ranks sum go to their buckets."""
        self.see(sum(self.live.setting.bytes(*key) for key in keys), temporary)
        for node, layout in keys:
            size = self.live.setting.bytes(node, layout)
            if base(node) in self.live.setting.tied:
                self.tied += size
            elif REPLICATE not in layout:
                self.grown += size

    def differentiate(self, step: Step, gradient: _Gradient) -> None:
        """All gradients of an op's operands exist before any is added to another."""
        node = step.made[0]
        trained = [k for k in step.reads if k[0] in self.live.differentiable and is_tensor(k[0])]
        inside = [k for k in dict.fromkeys(trained) if not is_parameter(base(k[0]))]
        made: list[_Gradient] = []
        for key in inside:
            joins = is_fresh(node) and key in self.pending and self.pending[key].holders == 1
            made.append(self.new(0.0 if joins else self.live.bytes(key), not is_attention(node)))
        self.weights([k for k in trained if is_parameter(base(k[0]))], self.scratch(step))
        for key, found in zip(inside, made, strict=True):
            self.give(key, found)

    def scratch(self, step: Step) -> float:
        """What an op's backward has of its own, as its rule says; math attention has the softmax' gradient."""
        node = step.made[0]
        strategies = self.live.solution.strategies[node]
        if self.live.setting.writes_scores(node):
            return 2 * scores_bytes(self.live.setting, node, strategies)
        scratch = min((_rule(step).scratch(strategy) for strategy in strategies.each), default=0)
        return scratch * self.keeping.hidden.get(node, 0.0)

    def let_go(self, step: Step) -> None:
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


_NOTHING = Rule(undivided)


def _rule(step: Step) -> Rule:
    """What is known of the op of a step."""
    return rule_of(str(step.made[0].target)) or _NOTHING
