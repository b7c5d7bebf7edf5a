"""Sharding equations of the ops that read or write what is kept from call to call (ops/cache_ops.py)."""

from __future__ import annotations

from partitioner.sharding.equations import Strategy, bind
from partitioner.sharding.layout import WHOLE, Shard
from partitioner.sharding.op_equations import Op, letters


def extended(op: Op) -> str:
    """A cache and what is written into it along a dimension, each sequence at places of its own."""
    names = letters(len(op.result))
    sample, dim = op.dim("sample", len(names)), op.dim("dim", len(names))
    cache, x = (" ".join(f"{word}!" if i == dim else n for i, n in enumerate(names)) for word in ("slots", "new"))
    return f"{cache}, {x}, {names[sample]} new! -> {cache}"


def stored(op: Op) -> str:
    """Samples written into memory of their shape."""
    names = letters(len(op.result))
    return f"{' '.join(names)}, {' '.join(names)}, {names[op.dim('sample', len(names))]} -> {' '.join(names)}"


def forgetful(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """The result is the same whatever the operand is."""
    return Strategy((shard,), WHOLE) if slot >= 0 else None


def gathered(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """Each rank may have a part, of whatever size, and gets all."""
    return Strategy((shard,), WHOLE) if slot == 0 else None


def positioned(op: Op) -> str:
    """A table cut at each sequence's positions: what it is not cut along may be divided."""
    names = letters(len(op.result))
    cut = [op.literal("query"), op.literal("key"), op.literal("sample")]
    source = [f"{n}of!" if i in cut else n for i, n in enumerate(names)][len(names) - len(op.operands[0]) :]
    return f"{' '.join(source)}, start! -> {' '.join(f'{n}!' if i in cut else n for i, n in enumerate(names))}"


def cached_attention(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """As attention; heads that share keys may be divided, not their positions."""
    rank, n = len(op.result), op.literal("n")
    lead = letters(rank - 2)
    if len({shape[:-2] for shape in op.operands[:3]}) > 1:
        return None
    if slot in (0, -1) and shard.dim == rank - 2 and any(s.repeat > 1 or s.granule % n for s in shard.segments):  # type: ignore[operator]
        return None
    first, mask = " ".join(lead), " ".join([*lead, "n!", "k!"][rank - len(op.operands[3]) :])
    text = f"{first} q e!, {first} k! e!, {first} k! v!, {mask} -> {first} q v!"
    return bind(text, op.operands, op.result).complete(slot, shard)


def last_position(op: Op) -> str:
    """One position of each sequence."""
    names = letters(len(op.result))
    dim = op.dim("dim", len(names))
    source = " ".join(f"{n}!" if i == dim else n for i, n in enumerate(names))
    result = " ".join("last!" if i == dim else n for i, n in enumerate(names))
    return f"{source}, {_of_samples(op, names)} -> {result}"


def _of_samples(op: Op, names: list[str]) -> str:
    """Of what there is one of for each sample: the factor of samples, where they are not merged with others."""
    sample = op.dim("sample", len(names))
    return names[sample] if op.result[sample] == op.operands[1][0] else "start!"
