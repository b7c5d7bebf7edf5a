"""A third capture held against what two captures at small sizes foretell of it.

                      at 4     at 5     at 8
    x.shape[0]        4        5        8         1 a sample
    x.shape[0] // 2   2        2        4         not the 2 that was foretold: refused
    min(len(x), 6)    4        5        6         not the 8 that was foretold: refused
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch.utils import _pytree as pytree

from partitioner.errors import InputError
from partitioner.samples.batch_laws import law_of
from partitioner.samples.paired_captures import is_size, unlike_words, words_of
from partitioner.tracing.capture import Captured

Samples = tuple[int, int, int]


@dataclass(frozen=True)
class Numbers:
    """Of one op, what it reads by place: ``sizes`` of its result and among its arguments, and what else is a number."""

    words: str
    reads: tuple[int, ...]
    sizes: tuple[int, ...]
    values: tuple[float, ...]


Seen = list[Numbers]


def numbers_in(captured: Captured) -> Seen:
    """Of every op and placeholder of a capture that was not rewritten yet, in order."""
    places, found = dict[object, int](), Seen()
    for node in captured.module.graph.nodes:
        places[node] = len(places)
        shape = value.shape if isinstance(value := node.meta.get("val"), torch.Tensor) else ()
        leaves = pytree.tree_leaves_with_path((node.args, node.kwargs)) if node.op == "call_function" else []
        numbers = [(x, is_size(node, path)) for path, x in leaves if type(x) in (int, float)]
        sizes, values = ([x for x, size in numbers if size is kind] for kind in (True, False))
        if node.op == "placeholder" and node.meta["kind"] == "buffer":
            values += _scalar(captured.buffers[node.meta["source"]])
        reads = tuple(places[n] for n in node.all_input_nodes)
        found.append(Numbers(words_of(node), reads, (*(int(x) for x in sizes), *shape), tuple(values)))
    return found


def _scalar(buffer: torch.Tensor) -> list[float]:
    """What forward makes of a number of Python."""
    return [buffer.item()] if buffer.dim() == 0 and not buffer.is_meta and not buffer.is_complex() else []


def same_ops(first: Seen, other: Seen, sizes: tuple[int, int]) -> None:
    """Raises InputError naming the first op of one that is another in the other."""
    for a, b in zip(first, other, strict=False):
        if (a.words, a.reads, len(a.sizes), len(a.values)) != (b.words, b.reads, len(b.sizes), len(b.values)):
            raise InputError(unlike_words((a.words, b.words), sizes))
    if len(first) != len(other):
        raise InputError(unlike_words((first[-1].words, other[-1].words), sizes))


def check_laws(first: Seen, second: Seen, third: Seen, samples: Samples) -> None:
    """Raises InputError naming the first op of which a size or a number is not the foretold one.

    The third may be other ops, where a slice takes all that there is: then it does not tell.
    """
    rows = list(zip(first, second, third, strict=False))
    if any(len({len(x.sizes) for x in row}) > 1 or len({len(x.values) for x in row}) > 1 for row in rows):
        return
    for a, b, c in rows:
        for x, y, z in zip(a.sizes, b.sizes, c.sizes, strict=True):
            if x + Fraction(y - x, samples[1] - samples[0]) * (samples[2] - samples[0]) != z:
                raise _lawless(a.words, (x, y, z), samples)
        for x, y, z in zip(a.values, b.values, c.values, strict=True):
            if not _follows(x, y, z, samples):
                raise _lawless(a.words, (x, y, z), samples)


def _follows(x: float, y: float, z: float, samples: Samples) -> bool:
    if x == y or x != x:
        return x == z or x != x and z != z
    law = law_of(x, y, samples[:2])
    return law is None or math.isclose(law.at(samples[2]), z, rel_tol=1e-12)  # without a law it is refused elsewhere


def _lawless(words: str, numbers: tuple[float, float, float], samples: Samples) -> InputError:
    seen = ", ".join(f"{x} for {n}" for x, n in zip(numbers, samples, strict=True))
    return InputError(
        f"{words} has a size or number that does not grow evenly with the samples ({seen}): let there be so many for "
        "each sample at any batch size, and keep two dimensions of samples apart"
    )
