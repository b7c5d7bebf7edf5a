"""``partitioner::part``: one part of a fused dimension, knowing all its siblings' sizes, so that each can be sharded."""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("partitioner", "FRAGMENT")
_LIBRARY.define("part(Tensor x, int dim, int[] sizes, int index) -> Tensor")


def part(x: torch.Tensor, dim: int, sizes: list[int], index: int) -> torch.Tensor:
    """``x.split(sizes, dim)[index]``, a view."""
    return x.narrow(dim, sum(sizes[:index]), sizes[index])


_LIBRARY.impl("part", part, "CompositeImplicitAutograd")
