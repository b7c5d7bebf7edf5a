"""How each op's operands and result share a division: equations written for a call's shapes and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from partitioner.sharding.equations import Shape, Strategy, bind
from partitioner.sharding.layout import WHOLE, Shard

TENSOR = "tensor"


@dataclass(frozen=True)
class Op:
    """What a rule may look at: an op's name, the shapes of its tensor operands and result, and its arguments.

    ``arguments`` holds every argument of the op's schema by its name, defaults too; each tensor is the word TENSOR.
    ``dtypes`` are the operands'.
    """

    target: str
    operands: tuple[Shape, ...]
    result: Shape
    arguments: Mapping[str, object]
    dtypes: tuple[torch.dtype, ...]

    def literal(self, name: str) -> object:
        """The argument of this name; None where the op has none."""
        return self.arguments.get(name)

    def sized(self, operands: tuple[Shape, ...], result: Shape) -> Op:
        """The same op of tensors of these shapes."""
        return replace(self, operands=operands, result=result)

    def dims(self, name: str, rank: int) -> tuple[int, ...]:
        """An argument that is an int, a list of ints, or None or empty for all, as non-negative dimensions."""
        value = self.literal(name)
        dims = range(rank) if value is None or value == [] else [value] if isinstance(value, int) else value
        return tuple(int(d) % max(rank, 1) for d in dims)  # type: ignore[union-attr, arg-type]

    def dim(self, name: str, rank: int) -> int:
        """An argument that is one dimension, non-negative."""
        return self.dims(name, rank)[0]


Complete = Callable[[Op, int, Shard, int], Strategy | None]
Text = Callable[[Op], str | None]


def equation(text: str | Text) -> Complete:
    """A rule that is an equation; where ``text`` answers None, nothing may be divided."""

    def complete(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
        equation = text if isinstance(text, str) else text(op)
        return bind(equation, op.operands, op.result).complete(slot, shard) if equation is not None else None

    return complete


def undivided(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """Every rank makes all of it."""
    return None


def elementwise(operands: int) -> Complete:
    return equation(", ".join(["*m"] * operands) + " -> *m")


def letters(rank: int) -> list[str]:
    return [f"d{i}" for i in range(rank)]


def marked(rank: int, whole: tuple[int, ...] | range) -> list[str]:
    """A letter for each dimension, those of ``whole`` to stay in one piece."""
    return [n + "!" if i in whole else n for i, n in enumerate(letters(rank))]


def along(name: str) -> Text:
    """Unary op that needs the dimensions named by an argument whole; it changes them, or drops or keeps them at 1."""

    def text(op: Op) -> str:
        dims = op.dims(name, len(op.operands[0]))
        left = marked(len(op.operands[0]), dims)
        kept = left if len(op.result) == len(left) else [n for i, n in enumerate(left) if i not in dims]
        return f"{' '.join(left)} -> {' '.join(kept)}"

    return text


def trailing(count: int) -> Text:
    """Unary op that works on the last dimensions together (pooling, resampling, triangles)."""

    def text(op: Op) -> str:
        rank = len(op.operands[0])
        left = " ".join(marked(rank, range(rank - count, rank)))
        return f"{left} -> {left}"

    return text


def sum_over(op: Op) -> str:
    names = letters(len(op.operands[0]))
    dims = op.dims("dim", len(names))
    kept = [f"one{i}" if i in dims else n for i, n in enumerate(names)]
    result = kept if len(op.result) == len(names) else [n for i, n in enumerate(names) if i not in dims]
    return f"{' '.join(names)} -> {' '.join(result)}"


def matmul(op: Op) -> str:
    """A vector on the left has no rows, one on the right no columns."""
    left, right = (len(shape) > 1 for shape in op.operands)
    terms = "*b m k" if left else "k", "*b k n" if right else "k"
    return f"{terms[0]}, {terms[1]} -> *b {'m' if left else ''} {'n' if right else ''}"


def linear(op: Op) -> str:
    """A weight of one dimension is one row, which the result does not show; a bias is no part of a Partial."""
    rows, features = "n" if len(op.operands[1]) > 1 else "", "k" if len(op.operands) == 2 else "k!"
    return f"*m {features}, {rows} {features}, {rows} -> *m {rows}"


def embedding(op: Op) -> str:
    """Gradients scaled by frequency divide by how often an index stands among *all* of them; sparse ones are no sum."""
    together = op.literal("scale_grad_by_freq") or op.literal("sparse")
    return "v! n, !*m -> !*m n" if together else "v n, *m -> *m n"


def scatter(op: Op) -> str:
    """Into a slice, which has the dimension, or into a selection, which has not."""
    rank = len(op.operands[0])
    dim = op.dim("dim", rank)
    whole = marked(rank, (dim,))
    short = whole if "slice" in op.target else [n for i, n in enumerate(whole) if i != dim]
    return f"{' '.join(whole)}, {' '.join(short)} -> {' '.join(whole)}"


def sliced(op: Op) -> str:
    """A dimension of which the slice takes all is not sliced."""
    dim = op.dim("dim", len(op.result))
    left = " ".join(marked(len(op.result), (dim,) if op.operands[0] != op.result else ()))
    return f"{left} -> {left}"


def padded(op: Op) -> str:
    """The argument counts from the last dimension, before and behind; what is cut there and grown here is moved."""
    pad, rank = op.literal("pad"), len(op.result)
    assert isinstance(pad, list | tuple)
    left = " ".join(marked(rank, tuple(rank - 1 - i // 2 for i, size in enumerate(pad) if size)))
    return f"{left} -> {left}"


def hot(op: Op) -> str:
    return "*m -> *m hot!"


def windows(op: Op) -> str:
    """``unfold``: windows of one dimension become a dimension behind the others."""
    rank = len(op.operands[0])
    left = " ".join(marked(rank, (op.dim("dimension", rank),)))
    return f"{left} -> {left} window!"


def gather(op: Op) -> str:
    """Sharded along a dimension that is not gathered where both operands have all of it; picks may be divided."""
    source, places = _picking(op, "from!", "pick")
    return f"{source}, {places} -> {places}"


def scatter_at(op: Op) -> str:
    """Sharded along a dimension that is not scattered where all operands have all of it."""
    target, places = _picking(op, "to!", "pick!")
    sources = "".join(f", {places}" for _ in op.operands[1:])
    return f"{target}{sources} -> {target}"


def _picking(op: Op, along: str, pick: str) -> tuple[str, str]:
    """Factors of a tensor and of indexes into its dimension ``dim``; elsewhere all agree or are whole."""
    rank = len(op.operands[0])
    same = [len(set(sizes)) == 1 for sizes in zip(*op.operands, strict=True)]
    terms = [(f"d{i}",) * 2 if s else (f"x{i}!", f"y{i}!") for i, s in enumerate(same)]
    if rank:
        terms[op.dim("dim", rank)] = (along, pick)
    tensor, places = (" ".join(words) for words in zip(*terms, strict=True)) if terms else ("", "")
    return tensor, places


def index_select(op: Op) -> str:
    """The indexed dimension becomes the index's own."""
    rank = len(op.operands[0])
    dim = op.dim("dim", rank)
    own = ["pick" if i == dim else n for i, n in enumerate(letters(rank))]
    return f"{' '.join(marked(rank, (dim,)))}, {'pick' if op.operands[1] else ''} -> {' '.join(own)}"


def index_add(op: Op) -> str:
    """Rows of the source are added to the indexed ones of the target."""
    rank = len(op.operands[0])
    dim = op.dim("dim", rank)
    target = " ".join(marked(rank, (dim,)))
    source = " ".join("pick!" if i == dim else n for i, n in enumerate(letters(rank)))
    return f"{target}, {'pick!' if op.operands[1] else ''}, {source} -> {target}"


def index(op: Op) -> str | None:
    """Indexes that stand side by side put their own dimensions in the place of those they index, else in front."""
    picked = _indexed(op, "")
    return None if picked is None else f"{picked[0]}, {picked[1]} -> {picked[2]}"


def index_put(op: Op) -> str | None:
    """What is not indexed may be divided where the values have all of it."""
    picked = _indexed(op, "!")
    return None if picked is None else f"{picked[0]}, {picked[1]}, {picked[2]} -> {picked[0]}"


def _indexed(op: Op, mark: str) -> tuple[str, str, str] | None:
    """Terms of a tensor, of the indexes into it, and of what they pick; None for an index that is a mask."""
    places = op.literal("indices")
    assert isinstance(places, list | tuple)
    at = [i for i, place in enumerate(places) if place is not None]
    shapes = op.operands[1 : 1 + len(at)]
    if torch.bool in op.dtypes[1 : 1 + len(at)]:
        return None
    width, names = max(len(shape) for shape in shapes), letters(len(op.operands[0]))
    own = [f"i{n}{mark}" for n in range(width)]
    left, middle = [n for i, n in enumerate(names) if i not in at], at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    picked = [*left[:middle], *own, *left[middle:]]
    terms = ", ".join(" ".join(own[width - len(shape) :]) for shape in shapes)
    if mark:
        picked = picked[len(picked) - len(op.operands[-1]) :]
    return " ".join(marked(len(names), tuple(at))), terms, " ".join(picked)


def norm(op: Op) -> str:
    shape = op.literal("normalized_shape")
    assert isinstance(shape, list | tuple)
    tail = " ".join(f"n{i}!" for i in range(len(shape)))
    return f"*m {tail}" + f", {tail}" * (len(op.operands) - 1) + f" -> *m {tail}"


def similarity(op: Op) -> str:
    """Operands that broadcast, reduced over one dimension of what they broadcast to."""
    rank = max(len(shape) for shape in op.operands)
    dim = op.dim("dim", rank)
    names = marked(rank, (dim,))
    terms = ", ".join(" ".join(names[rank - len(shape) :]) for shape in op.operands)
    return f"{terms} -> {' '.join(n for i, n in enumerate(names) if i != dim)}"


def attention(op: Op) -> str | None:
    """Heads that share keys and values stand in groups, which a division of either would take apart."""
    lead = [op.operands[n][:-2] for n in range(3)]
    if op.literal("dropout_p") or (op.literal("enable_gqa") and len(set(lead)) > 1):
        return None
    mask = ", *b q! k!" if len(op.operands) == 4 else ""
    return f"*b q! e!, *b k! e!, *b k! v!{mask} -> *b q! v!"


def unreduced(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """A loss of each element by itself, where no reduction is asked for."""
    return elementwise(len(op.operands))(op, slot, shard, ranks) if op.literal("reduction") == 0 else None


def draw(op: Op) -> str:
    """Each sample is drawn whole; a draw of the step (a key without a dimension) knows no samples."""
    return ("b -> b" if op.operands[0] else " ->") + " !*m"


def cross_entropy(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """Sharded over classes the op reduces by itself and returns the whole loss of each row."""
    strategy = bind("t v, t -> t", op.operands, op.result).complete(slot, shard)
    by_class = strategy is not None and isinstance(strategy.operands[0], Shard) and strategy.operands[0].dim == 1
    return Strategy(strategy.operands, WHOLE) if strategy and by_class else strategy
