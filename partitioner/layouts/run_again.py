"""What of a unit runs again in backward, and whose results are kept so that it need not, in each way of recomputing.

    norm --> linear --> gelu --> linear --> all_reduce --> add
    again    kept       again    passed     kept           not needed

What is gathered is not kept, for it is as many times larger as there are ranks: it is gathered again. What backward
reads is traced back to what is kept. A product that only a kept collective reads is passed on: it does
not run again, and its result is let go of once it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import fx

from partitioner.graph.nodes import operands
from partitioner.graph.saved_by_autograd import hides, saved
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.block_modules import BlockModules
from partitioner.layouts.conversions import Conversion, conversions, hops_of
from partitioner.layouts.op_kinds import biased, is_attention, is_choice, is_product
from partitioner.layouts.solution import Solution
from partitioner.ops.collective_kinds import KINDS
from partitioner.plan.recompute_ways import WAYS
from partitioner.sharding.layout import Layout

Placed = tuple[fx.Node, Layout]
Kind = Literal["product", "attention", "collective", "choice"]


@dataclass(frozen=True)
class RunAgain:
    """``regions``: the ops that a recompute walks, the whole unit or parts of it, of which ``again`` run, and
    ``sent_again`` are the collectives by which they convert, by their place in one of all ``conversions``. ``ends``:
    the last op of each region of which backward needs something; ``begun``: those of them that need not run, for it
    needs only what they read. ``kept``: results that are held from forward to backward, by what makes them; ``passed``
    ones are held for collectives alone."""

    is_whole: bool
    regions: tuple[frozenset[fx.Node], ...]
    again: tuple[fx.Node, ...]
    begun: frozenset[fx.Node]
    ends: frozenset[fx.Node]
    sent_again: frozenset[tuple[Conversion, int]]
    conversions: frozenset[Conversion]
    kept: Mapping[Placed, Kind]
    passed: frozenset[Placed]

    def sends(self, move: Conversion, number: int, reader: fx.Node) -> bool:
        """Whether a conversion's collective, or what ``reader`` sends of a value inside, is sent again."""
        return (move, number) in self.sent_again or (reader in self.again and move not in self.conversions)


def run_again(folded: Folded, solution: Solution, group: int, way: str, fused: bool = False) -> RunAgain:
    """Of a unit of the group, recomputed in a way of WAYS, by a program that fuses pointwise ops or doesn't."""
    return _Walk(folded, solution, group, way, fused).found()


@dataclass(frozen=True)
class _Step:
    """An op of the unit, or one collective of a conversion, the ``number``-th, which sends a ``kind`` forward, "" for
    nothing; ``reader``: the op that first needs it."""

    made: Placed
    reads: tuple[Placed, ...]
    move: Conversion | None = None
    reader: fx.Node | None = None
    number: int = 0
    kind: str = ""


class _Walk:
    def __init__(self, folded: Folded, solution: Solution, group: int, way: str, fused: bool) -> None:
        self.folded, self.solution, self.row = folded, solution, WAYS[way]
        self.body, self.differentiable = folded.body(group), folded.differentiable
        modules = BlockModules(folded, group, fused)
        self.core = modules.core
        self.regions = [frozenset(self.body)] if self.row.whole else modules.regions(self.row.modules)
        self.steps = list(self._steps(conversions(folded, solution, group)))
        self.maker = {step.made: step for step in self.steps}
        self.order = {node: n for n, node in enumerate(self.body)}
        self.walked = frozenset(node for region in self.regions for node in region)
        self.ends = {region: self._end(region) for region in self.regions}
        rows = ((n, end) for region, end in self.ends.items() if end is not None for n in region)
        self.runs = frozenset(n for n, end in rows if self.order[n] <= self.order[end])  # up to each region's end

    def _steps(self, moves: dict[fx.Node | None, list[Conversion]]) -> Iterator[_Step]:
        for node in (*self.body, None):
            for move in moves.get(node, ()):
                yield from self._converted(move, node)
            if node is not None:
                reads = zip(operands(node), self.solution.strategies[node].operands, strict=True)
                yield _Step((node, self._result(node)), tuple(reads))

    def _converted(self, move: Conversion, reader: fx.Node | None) -> Iterator[_Step]:
        value, now = move.value, move.source
        hops = hops_of(move, self.solution.axes, value in self.differentiable)
        for n, (made, kind) in enumerate([(hop.made, hop.row.forward) for hop in hops] or [(move.target, "")]):
            yield _Step((value, made), ((value, now),), move, reader, n, kind)
            now = made

    def _result(self, node: fx.Node) -> Layout:
        return self.solution.strategies[node].result

    def found(self) -> RunAgain:
        kept = self.kept
        readers: dict[Placed, list[_Step]] = {}
        for step in self.steps:
            for key in step.reads:
                readers.setdefault(key, []).append(step)
        passed = set[Placed]()
        for key, step in reversed(self.maker.items()):
            reading = readers.get(key, [])
            sole = reading[0] if len(reading) == 1 and (reading[0].move or self._joins(reading[0])) else None
            if key not in kept and self._kind(step) and sole is not None and sole.made in {*kept, *passed}:
                passed.add(key)
        again = [n for n in self.body if n in self.runs and not {(n, self._result(n))} & (kept.keys() | passed)]
        ends = {end for end in self.ends.values() if end is not None}
        begun = (end for end in ends if end in again and (end, self._result(end)) not in self._read_by_backward(end))
        sent = (s for s in self.steps if s.kind and s.reader in self.runs and s.made not in kept)
        return RunAgain(
            is_whole=self.row.whole,
            regions=tuple(self.regions),
            again=tuple(again),
            begun=frozenset(begun),
            ends=frozenset(ends),
            sent_again=frozenset((s.move, s.number) for s in sent if s.move),
            conversions=frozenset(step.move for step in self.steps if step.move),
            kept=kept,
            passed=frozenset(passed),
        )

    @cached_property
    def kept(self) -> dict[Placed, Kind]:
        """What is made of what is kept, or enters, needs no more than that."""
        steps, found, seen = self.maker, dict[Placed, Kind](), set[Placed]()
        left = [key for node in self.body if node in self.walked for key in self._read_by_backward(node)]
        left += [s.made for s in self.steps if s.move and s.reader in self.runs and self._kind(s)]
        while left:
            key = left.pop()
            step = steps.get(key)
            if key in seen or step is None:
                continue
            seen.add(key)
            if kind := self._kind(step):
                found[key] = kind
            else:
                left += step.reads
        return {key: found[key] for key in steps if key in found}

    def _read_by_backward(self, node: fx.Node) -> Iterator[Placed]:
        """What an op's backward reads: of what is hidden in it, its result, with which that is made."""
        if node not in self.differentiable:
            return
        own, result = self.solution.strategies[node], (node, self._result(node))
        for value in saved(node, self.differentiable):
            yield result if value is node else (value, own.operands[operands(node).index(value)])
        if hides(node):
            yield result

    def _kind(self, step: _Step) -> Kind | None:
        """What makes it, where that is kept in this way."""
        node = step.made[0]
        if step.move is None and is_choice(node, self.differentiable) and node in self.walked:
            return "choice"
        if not self.row.keeps_results:
            return None
        if step.move is not None:
            return "collective" if step.kind and not KINDS[step.kind].grows else None
        if is_attention(node):
            return "attention"
        is_whole = self._joins(step) or is_product(node)
        return "product" if is_whole and node not in self.core else None

    def _joins(self, step: _Step) -> bool:
        """Whether an op adds a bias to a product as it lies, which is one op then."""
        node, place = step.made[0], biased(step.made[0])
        if step.move is not None or place is None:
            return False
        return step.reads[place][1] == self.solution.made(operands(node)[place])

    def _end(self, region: frozenset[fx.Node]) -> fx.Node | None:
        """The last op of which something is needed again."""
        return max((n for n in region if self._is_read(n)), key=self.order.__getitem__, default=None)

    def _is_read(self, node: fx.Node) -> bool:
        """Whether backward needs something of an op."""
        return node in self.differentiable and (hides(node) or bool(saved(node, self.differentiable)))
