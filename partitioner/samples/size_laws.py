"""How the sizes of a graph grow with the batch: two captures say by how much each does with every further sample."""

from __future__ import annotations

from fractions import Fraction

from torch import fx
from torch.utils import _pytree as pytree

from partitioner.samples.paired_captures import Sizes, pairs


def note_sizes(first: fx.Graph, second: fx.Graph, sizes: Sizes) -> None:
    """Note in ``meta["slopes"]`` of the first trace by how much each of its sizes grows with each further sample.

    Of an op by the number of the argument among all (nested ones flattened), of a placeholder by its dimension.
    """
    more = sizes[1] - sizes[0]
    for a, b in pairs(first, second, sizes):
        if a.op == "output":
            continue
        if a.op == "placeholder":
            here, there = list(a.meta["val"].shape), list(b.meta["val"].shape)
        else:
            here, there = (pytree.tree_leaves((n.args, n.kwargs)) for n in (a, b))
        rows = list(enumerate(zip(here, there, strict=True)))
        different = {i: (x, y) for i, (x, y) in rows if isinstance(x, int) and type(x) is type(y) and x != y}
        a.meta["slopes"] = {i: Fraction(y - x, more) for i, (x, y) in different.items()}
