"""Sharding equations of the ops that read or write what is kept from call to call (ops/cache_ops.py)."""

from __future__ import annotations

from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import WHOLE, Placement, Shard
from partitioner.sharding.op_equations import Complete, Op, letters, marked


def extended(op: Op) -> str:
    """A cache and what is written into it along a dimension; each sequence begins somewhere."""
    names = letters(len(op.result))
    sample, dim = op.dim("sample", len(names)), op.dim("dim", len(names))
    cache, x = (" ".join(f"{word}!" if i == dim else n for i, n in enumerate(names)) for word in ("slots", "new"))
    return f"{cache}, {x}, {names[sample]} -> {cache}"


def stored(op: Op) -> str:
    """Samples written into memory of their shape."""
    names = letters(len(op.result))
    return f"{' '.join(names)}, {' '.join(names)}, {names[op.dim('sample', len(names))]} -> {' '.join(names)}"


def forgetful(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """The result is the same whatever the operand is."""
    return Strategy((shard,), WHOLE) if slot >= 0 else None


def positioned(op: Op) -> str:
    """A table cut at each sequence's positions: what it is not cut along may be divided."""
    names = letters(len(op.result))
    cut = [op.literal("query"), op.literal("key"), op.literal("sample")]
    source = [f"{n}of!" if i in cut else n for i, n in enumerate(names)][len(names) - len(op.operands[0]) :]
    return f"{' '.join(source)}, start! -> {' '.join(f'{n}!' if i in cut else n for i, n in enumerate(names))}"


def hidden(op: Op) -> str:
    """Scores of queries and keys, which both stay whole."""
    names = letters(len(op.result))
    whole = " ".join(marked(len(names), (op.dim("query", len(names)), op.dim("key", len(names)))))
    return f"{whole}, {_of_samples(op, names)} -> {whole}"


def cached_attention(op: Op) -> str | None:
    """As attention; each sequence begins somewhere."""
    lead = letters(len(op.result) - 2)
    if len({shape[:-2] for shape in op.operands[:3]}) > 1:
        return None
    first = " ".join(lead)
    mask = [*lead, "q!", "k!"][len(op.result) - len(op.operands[4]) :] if len(op.operands) > 4 else []
    rest = f", {' '.join(mask)}" if mask else ""
    return f"{first} q! e!, {first} k! e!, {first} k! v!, {_of_samples(op, lead)}{rest} -> {first} q! v!"


def whole_samples(rule: Complete) -> Complete:
    """The rule, where each rank has as many of what samples are merged with, in each run of them: that is what the op
    takes a merged dimension apart by."""

    def complete(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
        found = rule(op, slot, shard, ranks)
        return found if found is None or _has_runs(op, found.result) else None

    return complete


def _has_runs(op: Op, result: Placement) -> bool:
    sample = op.dim("sample", len(op.result))
    if not isinstance(result, Shard) or result.dim != sample or op.result[sample] == _many(op):
        return True
    runs = op.literal("repeat") * _many(op)
    return len(result.segments) == 1 and result.segments[0].repeat % runs == 0


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
    return names[sample] if op.result[sample] == _many(op) else "start!"


def _many(op: Op) -> int:
    """How many samples there are."""
    return op.operands[1 if len(op.operands) < 4 else 3][0]
