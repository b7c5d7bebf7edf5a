"""How each op's operands and result share a division: equations written for a call's shapes, and the views by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from partitioner.equations import Shape, Strategy, bind
from partitioner.layout import REPLICATE, WHOLE, Segment, Shard, reshape_shard


@dataclass(frozen=True)
class Op:
    """What a rule may look at: an op's name, the shapes of its tensor operands and result, and its other arguments.

    ``literals`` are all positional arguments with each tensor (or list of tensors) replaced by None.
    """

    target: str
    operands: tuple[Shape, ...]
    result: Shape
    literals: tuple[object, ...]
    present: tuple[bool, ...] = ()

    def literal(self, index: int, default: object = None) -> object:
        """Positional argument ``index``, or ``default``."""
        return self.literals[index] if index < len(self.literals) else default

    def dims(self, index: int, rank: int) -> tuple[int, ...]:
        """Positional argument ``index`` (an int, a list of ints or None for all) as non-negative dimensions."""
        value = self.literal(index)
        dims = range(rank) if value is None or value == [] else [value] if isinstance(value, int) else value
        return tuple(int(d) % rank for d in dims)  # type: ignore[union-attr, arg-type]


Complete = Callable[[Op, int, Shard, int], Strategy | None]


def equation(text: str | Callable[[Op], str]) -> Complete:
    def complete(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
        equation = text if isinstance(text, str) else text(op)
        return bind(equation, op.operands, op.result).complete(slot, shard)

    return complete


def elementwise(operands: int) -> Complete:
    return equation(", ".join(["*m"] * operands) + " -> *m")


def _letters(rank: int) -> list[str]:
    return [f"d{i}" for i in range(rank)]


def along(position: int, keep: bool) -> Callable[[Op], str]:
    """Unary op that needs the dimensions named by argument ``position`` whole; reductions drop or keep them."""

    def text(op: Op) -> str:
        names = _letters(len(op.operands[0]))
        dims = op.dims(position, len(names))
        left = [n + "!" if i in dims else n for i, n in enumerate(names)]
        if keep or len(op.result) == len(names):
            return f"{' '.join(left)} -> {' '.join(left)}"
        return f"{' '.join(left)} -> {' '.join(n for i, n in enumerate(names) if i not in dims)}"

    return text


def sum_over(op: Op) -> str:
    names = _letters(len(op.operands[0]))
    dims = op.dims(1, len(names)) if op.target != "aten.sum.default" else tuple(range(len(names)))
    kept = [f"one{i}" if i in dims else n for i, n in enumerate(names)]
    result = kept if len(op.result) == len(names) else [n for i, n in enumerate(names) if i not in dims]
    return f"{' '.join(names)} -> {' '.join(result)}"


def reshape(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    source, target = op.operands[0], op.result
    if slot < 0:
        operand = reshape_shard(shard, target, source, ranks)
        return Strategy((operand,), shard) if operand else None
    result = reshape_shard(shard, source, target, ranks)
    return Strategy((shard,), result) if result else None


def permute(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    dims = op.dims(1, len(op.result))
    if slot < 0:
        return Strategy((shard.moved(dims[shard.dim]),), shard)
    return Strategy((shard,), shard.moved(dims.index(shard.dim)))


def expand(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    source, extra = op.operands[0], len(op.result) - len(op.operands[0])
    if slot >= 0:
        return Strategy((shard,), shard.moved(shard.dim + extra)) if source[shard.dim] > 1 else None
    dim = shard.dim - extra
    grown = dim < 0 or source[dim] != op.result[shard.dim]
    return Strategy((REPLICATE if grown else shard.moved(dim),), shard)


def part(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """Arguments (x, dim, sizes, index): the parts of a fused dimension are sharded each on its own."""
    dim, sizes, index = op.literal(1), op.literal(2), op.literal(3)
    assert isinstance(dim, int)
    assert isinstance(index, int)
    assert isinstance(sizes, list | tuple)
    if shard.dim != dim:
        return Strategy((shard,), shard)
    if slot < 0:
        return _part_of_whole(shard, dim, tuple(sizes), index, ranks)
    offset, want = sum(sizes[:index]), sizes[index]
    position = 0
    for segment in shard.segments:
        if position == offset and segment.size == want:
            return Strategy((shard,), Shard(dim, (segment,)))
        position += segment.size
    return None


def _part_of_whole(shard: Shard, dim: int, sizes: tuple[int, ...], index: int, ranks: int) -> Strategy | None:
    if len(shard.segments) != 1:
        return None
    own = shard.segments[0]
    segments: list[Segment] = []
    for i, size in enumerate(sizes):
        units = own if i == index else _like(own, size, ranks)
        if units is None:
            return None
        segments.append(units)
    return Strategy((Shard(dim, tuple(segments)),), shard)


def _like(segment: Segment, size: int, ranks: int) -> Segment | None:
    """A segment of another size divided the same way: in equal parts, or else in the same granules."""
    if segment.is_even(ranks):
        parts = segment.repeat * ranks
        return Segment(segment.repeat, ranks, size // parts) if size % parts == 0 else None
    block = segment.repeat * segment.granule
    return Segment(segment.repeat, size // block, segment.granule) if size % block == 0 else None


def cat(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    rank = len(op.result)
    dim = int(op.literal(1, 0)) % rank  # type: ignore[call-overload]
    if shard.dim == dim:
        return None
    return Strategy((shard,) * len(op.operands), shard)


def pad(op: Op) -> str:
    names = _letters(len(op.operands[0]))
    same = [a == b for a, b in zip(op.operands[0], op.result, strict=True)]
    term = " ".join(n if keep else n + "!" for n, keep in zip(names, same, strict=True))
    return f"{term} -> {term}"


def scatter(op: Op) -> str:
    names = _letters(len(op.operands[0]))
    dim = int(op.literal(2, 0)) % len(names)  # type: ignore[call-overload]
    whole = [n + "!" if i == dim else n for i, n in enumerate(names)]
    short = whole if "slice" in op.target else [n for i, n in enumerate(names) if i != dim]
    return f"{' '.join(whole)}, {' '.join(short)} -> {' '.join(whole)}"


def select(op: Op) -> str:
    names = _letters(len(op.operands[0]))
    dim = int(op.literal(1, 0)) % len(names)  # type: ignore[call-overload]
    left = " ".join(n + "!" if i == dim else n for i, n in enumerate(names))
    return f"{left} -> {' '.join(n for i, n in enumerate(names) if i != dim)}"


def top(op: Op) -> str:
    names = _letters(len(op.operands[0]))
    dim = int(op.literal(2, -1)) % len(names)  # type: ignore[call-overload]
    return " ".join(n + "!" if i == dim else n for i, n in enumerate(names)) + " -> " + " ".join(
        "top!" if i == dim else n for i, n in enumerate(names)
    )


def gather(op: Op) -> str:
    """Sharded along a dimension that is not gathered where both operands have all of it; picks may be divided."""
    source, places = _picking(op, "from!", "pick")
    return f"{source}, {places} -> {places}"


def scatter_at(op: Op) -> str:
    """Sharded along a dimension that is not scattered where all operands have all of it."""
    target, places = _picking(op, "to!", "pick!")
    return f"{target}{f', {places}' * (len(op.operands) - 1)} -> {target}"


def _picking(op: Op, along: str, pick: str) -> tuple[str, str]:
    """Factors of a tensor and of indexes into its dimension ``op.literal(1)``; elsewhere they agree or are whole."""
    dim = int(op.literal(1, 0)) % len(op.result)  # type: ignore[call-overload]
    same = [a == b for a, b in zip(op.operands[0], op.operands[1], strict=True)]
    terms = [(f"d{i}",) * 2 if s else (f"x{i}!", f"d{i}!") for i, s in enumerate(same)]
    terms[dim] = (along, pick)
    tensor, places = (" ".join(words) for words in zip(*terms, strict=True))
    return tensor, places


def norm(op: Op) -> str:
    shape = op.literal(1)
    assert isinstance(shape, list | tuple)
    tail = " ".join(f"n{i}!" for i in range(len(shape)))
    return f"*m {tail}" + f", {tail}" * (len(op.operands) - 1) + f" -> *m {tail}"


def attention(op: Op) -> str:
    mask = ", *b q! k!" if len(op.operands) == 4 else ""
    return f"*b q! e!, *b k! e!, *b k! v!{mask} -> *b q! v!"


def unreduced(position: int) -> Complete:
    """A loss of each element by itself, where the argument ``position`` asks for no reduction."""

    def complete(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
        return elementwise(len(op.operands))(op, slot, shard, ranks) if op.literal(position) == 0 else None

    return complete


def draw(op: Op) -> str:
    """Each sample is drawn whole; a draw of the step (a key without a dimension) knows no samples."""
    return ("b -> b" if op.operands[0] else " ->") + " !*m"


def cross_entropy(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """Sharded over classes the op reduces by itself and returns the whole loss of each row."""
    strategy = bind("t v, t -> t", op.operands, op.result).complete(slot, shard)
    by_class = strategy is not None and isinstance(strategy.operands[0], Shard) and strategy.operands[0].dim == 1
    return Strategy(strategy.operands, WHOLE) if strategy and by_class else strategy


def convolution(op: Op) -> str:
    space = " ".join(f"x{i}!" for i in range(len(op.operands[0]) - 2))
    kernel = " ".join(f"k{i}!" for i in range(len(op.operands[0]) - 2))
    out = " ".join(f"y{i}!" for i in range(len(op.operands[0]) - 2))
    bias = ", o" if len(op.operands) == 3 else ""
    channels = "c" if len(op.operands) == 2 else "c!"
    return f"n {channels} {space}, o {channels} {kernel}{bias} -> n o {out}"
