"""Every group that a Program speaks in, tried before the first step: it is made, it answers, and how fast."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from runtime.mesh.groups import Groups
from runtime.ranks.doing import waits
from runtime.ranks.process_group import everywhere
from runtime.ranks.watchdog import Watchdog

BYTES, TIMES = 4_000_000, 3
SLOW, LEAST_SECONDS = 8.0, 0.05  # times the median of its like, and what no noise of a machine explains


@dataclass(frozen=True)
class Tried:
    """The quickest of a few sums of 4 MB among ``ranks``, as one of them saw it."""

    axis: str
    ranks: tuple[int, ...]
    seconds: float


def try_groups(groups: Groups, limit_seconds: float, tell: Callable[[str], object]) -> None:
    """On all ranks together. ``tell`` is told, on every rank, of groups that are far slower than others of their axis.

    One that does not answer in ``limit_seconds`` ends all ranks, named.
    """
    rows = [_tried(axis, group, groups.device, limit_seconds) for axis, group in groups.every()]
    found = {(row.axis, row.ranks): row for own in everywhere(rows) for row in own}
    for words in slow_groups([found[key] for key in sorted(found)]):
        tell(words)


@waits
def _tried(axis: str, group: dist.ProcessGroup, device: torch.device, limit_seconds: float) -> Tried:
    ranks = tuple(dist.get_process_group_ranks(group))
    x, took = torch.zeros(BYTES // 4, device=device), list[float]()
    with Watchdog(limit_seconds, f"the first words of the {axis} group of {named_ranks(ranks)}"):
        for _ in range(1 + TIMES):
            began = time.perf_counter()
            dist.all_reduce(x, group=group)
            float(x[0])
            took.append(time.perf_counter() - began)
    return Tried(axis, ranks, min(took[1:]))


def slow_groups(rows: list[Tried]) -> Iterator[str]:
    """A line for each group that is far slower than the median of its axis."""
    for row in rows:
        like = [other.seconds for other in rows if other.axis == row.axis and len(other.ranks) == len(row.ranks)]
        usual = statistics.median(like)
        if row.seconds > max(SLOW * usual, LEAST_SECONDS):
            yield (
                f"the {row.axis} group of {named_ranks(row.ranks)} takes {row.seconds * 1e3:.3g} ms for 4 MB, its like "
                f"{usual * 1e3:.3g} ms: look at the links between them"
            )


def misplaced(node_devices: int, tell: Callable[[str], object]) -> None:
    """Tell, on every rank, where ranks that the plan takes to be on one node are not."""
    hosts = everywhere(socket.gethostname())
    for first in range(0, len(hosts), node_devices):
        own = hosts[first : first + node_devices]
        if len(set(own)) > 1:
            last = first + len(own) - 1
            tell(
                f"ranks {first} to {last} are one node of the plan and run on {', '.join(dict.fromkeys(own))}: start "
                f"{node_devices} ranks on each node, in order (srun --distribution=block)"
            )


def named_ranks(ranks: tuple[int, ...]) -> str:
    """``ranks 0, 4, 8, ... (64)``."""
    more = f", ... ({len(ranks)})" if len(ranks) > 4 else ""
    return f"ranks {', '.join(map(str, ranks[:4]))}{more}"
