"""What a collective's row says of its values."""

from __future__ import annotations

import pytest

from partitioner.ops.collectives import OPS


@pytest.mark.parametrize(
    ("shape", "dim", "in_order"),
    [((4, 6), 0, True), ((4, 6), 1, False), ((1, 6, 2), 1, True), ((1, 6, 2), 2, False)],
)
def test_parts_of_the_outermost_dimension_lie_one_behind_the_other(
    shape: tuple[int, ...], dim: int, in_order: bool
) -> None:
    for name in ("all_gather", "reduce_scatter", "shard"):
        assert OPS[name].in_order(shape, dim, [1, 2, 1]) == in_order
