"""What a sweep times between ranks: collectives as a step makes them, through autograd, and a stage's sends.

    groups of neighbours in a node     2, .. all ranks of a node        all such groups at once
    groups of one rank of each node    2, .. all nodes                  all such groups at once
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER
from partitioner.sharding.layout import flat, shard_whole
from runtime.measure.device_probes import Call, Probe
from runtime.mesh import collectives
from runtime.mesh.axis import Axis
from runtime.mesh.communication_log import Log

PAYLOADS = {"cpu": (16_384, 131_072, 1_048_576, 8_388_608), "cuda": (65_536, 1_048_576, 16_777_216, 268_435_456)}
QUICK_PAYLOADS = 3
Autograd = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Link:
    """This rank's group of a size; ``nodes`` of it are apart."""

    group: dist.ProcessGroup
    ranks: int
    nodes: int


def links_of(world: int, local: int) -> Iterator[Link]:
    """Groups of neighbours in a node, and of ranks with the same place in different nodes; this rank's of each size."""
    for size in _sizes(local):
        blocks = [list(range(first, first + size)) for first in range(0, world, size)]
        yield Link(_own(blocks), size, 1)
    nodes = world // local
    for size in _sizes(nodes):
        firsts = [(first, place) for first in range(0, nodes, size) for place in range(local)]
        rows = [[n * local + place for n in range(first, first + size)] for first, place in firsts]
        yield Link(_own(rows), size, size)


def _sizes(ranks: int) -> list[int]:
    """Group sizes that divide all ranks."""
    return [n for n in range(2, ranks + 1) if ranks % n == 0]


def _own(groups: list[list[int]]) -> dist.ProcessGroup:
    made = {tuple(ranks): dist.new_group(ranks) for ranks in groups}
    return next(g for ranks, g in made.items() if dist.get_rank() in ranks and isinstance(g, dist.ProcessGroup))


def link_probes(links: list[Link], device: torch.device, quick: bool) -> Iterator[Probe]:
    """Every kind at every size in every group."""
    for link in links:
        for size in PAYLOADS[device.type][: QUICK_PAYLOADS if quick else None]:
            for kind, (make, calls) in _KINDS.items():
                yield Probe(
                    kind, torch.float32, (size,), lambda make=make, link=link, size=size: make(link, size // 4, device),
                    link.ranks, link.nodes, calls,
                )  # fmt: skip


def _axis(link: Link) -> Axis:
    scatters = dist.get_backend(link.group) != "gloo"
    return Axis("link", dist.get_rank(link.group), link.ranks, link.group, Log(), scatters)


def _both_ways(run: Autograd, x: torch.Tensor) -> Call:
    """A collective and its backward twin."""
    x.requires_grad_()
    gradient = torch.ones_like(run(x))
    return lambda: torch.autograd.grad(run(x), x, gradient)


def _all_reduce(link: Link, elements: int, device: torch.device) -> Call:
    """Backward sums what entered, forward what leaves."""
    enter, leave = collectives.copy(_axis(link)), collectives.all_reduce(_axis(link), False)
    return _both_ways(lambda x: leave(enter(x)), torch.ones(elements, device=device))


def _all_gather(link: Link, elements: int, device: torch.device) -> Call:
    """Backward reduces and scatters."""
    width = elements // 2 // link.ranks
    shard = shard_whole(1, width * link.ranks, link.ranks)
    run = collectives.all_gather(_axis(link), 1, flat(shard.segments), True)
    return _both_ways(run, torch.ones(2, width, device=device))


def _reduce_scatter(link: Link, elements: int, device: torch.device) -> Call:
    """Backward gathers."""
    width = elements // 2 // link.ranks * link.ranks
    run = collectives.reduce_scatter(_axis(link), 1, flat(shard_whole(1, width, link.ranks).segments))
    return _both_ways(run, torch.ones(2, width, device=device))


def _all_to_all(link: Link, elements: int, device: torch.device) -> Call:
    """A rank holds ``elements``: its part of dimension 0, all of dimension 1."""
    width = elements // link.ranks // link.ranks * link.ranks
    here, there = shard_whole(0, link.ranks**2, link.ranks), shard_whole(1, width, link.ranks)
    run = collectives.all_to_all(_axis(link), 0, flat(here.segments), 1, flat(there.segments))
    return _both_ways(run, torch.ones(link.ranks, width, device=device))


def _send(link: Link, elements: int, device: torch.device) -> Call:
    x, y = torch.ones(elements, device=device), torch.empty(elements, device=device)

    def run() -> None:
        for work in exchange(x, y, link):
            work.wait()

    return run


def exchange(x: torch.Tensor, y: torch.Tensor, link: Link) -> list[dist.Work]:
    """Every rank starts to send ``x`` to the next one and to receive ``y`` from the one before, as stages do."""
    here = dist.get_rank(link.group)
    target, source = (here + 1) % link.ranks, (here - 1) % link.ranks
    return dist.batch_isend_irecv([
        dist.P2POp(dist.isend, x, group=link.group, group_peer=target),
        dist.P2POp(dist.irecv, y, group=link.group, group_peer=source),
    ])  # fmt: skip


_KINDS: dict[str, tuple[Callable[[Link, int, torch.device], Call], int]] = {
    ALL_REDUCE: (_all_reduce, 2), ALL_GATHER: (_all_gather, 2), REDUCE_SCATTER: (_reduce_scatter, 2),
    ALL_TO_ALL: (_all_to_all, 2), "send": (_send, 1),
}  # fmt: skip
