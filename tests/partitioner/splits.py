"""A Split written down in a test, on one pipeline of pp ranks or beside dp and tp others; all cuts of units."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from partitioner.graph.graph import Unit
from partitioner.plan.parallelism import Parallelism, mesh_of
from partitioner.step.split import Split, StageSums


def split_of(
    sums: Sequence[StageSums], units: Sequence[tuple[Unit, ...]], many: int, kind: str = "1f1b", virtual: int = 1,
    recomputed: Sequence[int] = (), zero: int = 0, way: str = "full", **degrees: int,
) -> Split:  # fmt: skip
    """``many`` micro-batches; ``recomputed``: blocks of each stage, in a ``way``; none where nothing is said."""
    mesh = mesh_of(**degrees)
    own = Parallelism(
        mesh=mesh, order=tuple(mesh), micro_batch=1, micro_batches=many, schedule=kind, virtual=virtual,
        recompute=way if recomputed else "none", zero=zero,
    )  # fmt: skip
    counts = tuple(recomputed) or (0,) * len(sums)
    return Split(parallelism=own, stages=tuple(sums), units=tuple(units), recomputed=counts)


def all_cuts(units: tuple[Unit, ...], stages: int) -> Iterator[tuple[tuple[Unit, ...], ...]]:
    """Every way to cut units into so many stages, each with a block."""
    for ends in itertools.combinations(range(1, len(units)), stages - 1):
        cut = tuple(units[a:b] for a, b in itertools.pairwise((0, *ends, len(units))))
        if all(any(unit.is_block for unit in stage) for stage in cut):
            yield cut
