"""Sharding equations: ``"*m k, n k -> *m n"`` says which dimensions of an op share a factor.

    k!      the factor must stay whole
    *m      as many leading dimensions as the tensor has beyond the named ones, aligned from the right
    !*m     the same, all whole

A factor of the operands that is missing in the result is summed over: sharding it leaves the result Partial. One that
has two sizes, neither of them 1, must stay whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from partitioner.sharding.layout import PARTIAL, REPLICATE, Layout, Placement, Shard

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Strategy:
    """One legal way to run an op on one mesh axis: a placement for each tensor operand, and one for the result."""

    operands: tuple[Placement, ...]
    result: Placement

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.operands, self.result))


@dataclass(frozen=True)
class Strategies:
    """How an op runs: a Strategy on each axis along which ops lie, outermost first; and what follows, a Layout of each
    operand and of the result."""

    each: tuple[Strategy, ...]

    def __hash__(self) -> int:
        return hash(self.each)

    @cached_property
    def operands(self) -> tuple[Layout, ...]:
        """Of each tensor operand."""
        return tuple(zip(*(strategy.operands for strategy in self.each), strict=True))

    @cached_property
    def result(self) -> Layout:
        """Of the result."""
        return tuple(strategy.result for strategy in self.each)


@dataclass(frozen=True)
class Equation:
    """A parsed equation bound to shapes: a factor name for each dimension, "" where a size-1 dimension broadcasts."""

    operands: tuple[tuple[str, ...], ...]
    result: tuple[str, ...]
    whole: frozenset[str]

    def complete(self, slot: int, shard: Shard) -> Strategy | None:
        """The strategy in which operand ``slot`` (-1: the result) lies as ``shard``; None where that is illegal."""
        dims = self.result if slot < 0 else self.operands[slot]
        factor = dims[shard.dim] if shard.dim < len(dims) else ""
        if not factor or factor in self.whole:
            return None
        placements = tuple(_place(names, factor, shard, REPLICATE) for names in self.operands)
        return Strategy(placements, _place(self.result, factor, shard, PARTIAL))


def _place(names: tuple[str, ...], factor: str, shard: Shard, otherwise: Placement) -> Placement:
    return shard.moved(names.index(factor)) if factor in names else otherwise


def bind(text: str, operands: tuple[Shape, ...], result: Shape) -> Equation:
    """Read an equation for tensors of these shapes; raises ValueError when the ranks do not fit it."""
    left, _, right = text.partition("->")
    words = [part.split() for part in left.split(",")]
    if len(words) < len(operands):
        raise ValueError(f"equation {text!r} has {len(words)} operands, the op has {len(operands)}")
    whole: set[str] = set()
    terms = [_names(w, shape, whole) for w, shape in zip(words, operands, strict=False)]
    output = _names(right.split(), result, whole)
    sizes = dict(zip(output, result, strict=True))
    for names, shape in zip(terms, operands, strict=True):
        whole |= {n for n, size in zip(names, shape, strict=True) if size not in (1, sizes.get(n, size))}
    bound = tuple(_drop_broadcast(names, shape, sizes) for names, shape in zip(terms, operands, strict=True))
    return Equation(bound, _drop_units(output, result), frozenset(whole))


def _names(words: list[str], shape: Shape, whole: set[str]) -> tuple[str, ...]:
    named = [w for w in words if "*" not in w]
    wild = len(shape) - len(named)
    if wild < 0 or (wild and len(named) == len(words)):
        raise ValueError(f"equation term {' '.join(words)!r} does not fit a tensor of shape {shape}")
    names: list[str] = []
    for word in words:
        if "*" in word:
            names += [f"{word.lstrip('!')}{i}" for i in reversed(range(wild))]
        else:
            names.append(word.rstrip("!"))
        if "!" in word:
            whole.update(names[-wild:] if "*" in word and wild else names[-1:] if "*" not in word else [])
    return tuple(names)


def _drop_broadcast(names: tuple[str, ...], shape: Shape, sizes: dict[str, int]) -> tuple[str, ...]:
    broadcast = [size == 1 or sizes.get(n, size) != size for n, size in zip(names, shape, strict=True)]
    return tuple("" if b else n for n, b in zip(names, broadcast, strict=True))


def _drop_units(names: tuple[str, ...], shape: Shape) -> tuple[str, ...]:
    return tuple("" if size == 1 else n for n, size in zip(names, shape, strict=True))
