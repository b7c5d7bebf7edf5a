"""Process groups that have no rank in common, made together: one split of the world, however many they are.

    tp of 4,096 ranks    (0 .. 7) (8 .. 15) ...    one split, as torch's DeviceMesh makes them
    pipeline lanes       (0 1) (2 3), (1 2) (3 0)  one split a color, as in the coloring of a graph's edges
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch.distributed as dist

from runtime.ranks.own_device import backend_of
from runtime.ranks.process_group import TIMEOUT

NCCL = "nccl"
Cells = Sequence[tuple[int, ...]]
Make = Callable[[Cells], dist.ProcessGroup | None]
Edge = TypeVar("Edge", bound=tuple[int, ...])


def made_together(cells: Cells) -> dist.ProcessGroup | None:
    """This rank's among these groups; all ranks of the world call it. None where it is in no group.

    NCCL splits the world's communicator once where that has a device; else each group is made by itself. A split takes
    every rank somewhere: torch names a part after how many the rank has been in, and its members must agree on that.
    """
    if is_split_from_world():
        others = set(range(dist.get_world_size())).difference(*cells)
        parts = [*map(list, cells), *([rank] for rank in sorted(others))]
        found = dist.split_group(split_ranks=parts, timeout=TIMEOUT)
        return None if dist.get_rank() in others or not isinstance(found, dist.ProcessGroup) else found
    own: dist.ProcessGroup | None = None
    for ranks in cells:
        made = dist.new_group(list(ranks), timeout=TIMEOUT)
        own = made if isinstance(made, dist.ProcessGroup) else own
    return own


def is_split_from_world() -> bool:
    """Whether communicators are made when groups are: the world's is NCCL's, and there, on this rank's own device."""
    device = getattr(dist.group.WORLD, "bound_device_id", None)
    return device is not None and backend_of(device) == NCCL


def apart(edges: Iterable[Edge]) -> list[list[Edge]]:
    """Edges in groups of which no two have an end in common, in the order in which they come: 2 or 3 of a ring."""
    colors: list[list[Edge]] = []
    for edge in edges:
        free = (color for color in colors if not any(set(edge) & set(other) for other in color))
        color = next(free, None)
        if color is None:
            colors.append([edge])
        else:
            color.append(edge)
    return colors
