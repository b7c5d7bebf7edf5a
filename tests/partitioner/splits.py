"""A Split written down in a test, on one pipeline of pp ranks or beside dp and tp others."""

from __future__ import annotations

from collections.abc import Sequence

from partitioner.graph.graph import Unit
from partitioner.plan.parallelism import Parallelism, mesh_of
from partitioner.step.split import Split, StageSums


def split_of(
    sums: Sequence[StageSums], units: Sequence[tuple[Unit, ...]], many: int, kind: str = "1f1b", virtual: int = 1,
    recomputed: Sequence[int] = (), **degrees: int,
) -> Split:  # fmt: skip
    """``many`` micro-batches; ``recomputed``: whole blocks of each stage, none where nothing is said."""
    mesh = mesh_of(**degrees)
    own = Parallelism(
        mesh=mesh, order=tuple(mesh), micro_batch=1, micro_batches=many, schedule=kind, virtual=virtual,
        recompute="full" if recomputed else "none",
    )  # fmt: skip
    counts = tuple(recomputed) or (0,) * len(sums)
    return Split(parallelism=own, stages=tuple(sums), units=tuple(units), recomputed=counts)
