"""What a collective's row says of its values."""

from __future__ import annotations

import pytest

from partitioner.ops.collectives import OPS, convert_value
from partitioner.sharding.layout import PARTIAL, REPLICATE, WHOLE, Placement


@pytest.mark.parametrize(
    ("shape", "dim", "in_order"),
    [((4, 6), 0, True), ((4, 6), 1, False), ((1, 6, 2), 1, True), ((1, 6, 2), 2, False)],
)
def test_parts_of_the_outermost_dimension_lie_one_behind_the_other(
    shape: tuple[int, ...], dim: int, in_order: bool
) -> None:
    for name in ("all_gather", "reduce_scatter", "shard"):
        assert OPS[name].in_order(shape, dim, [1, 2, 1]) == in_order


@pytest.mark.parametrize("source", [WHOLE, REPLICATE])
def test_a_value_without_a_gradient_that_all_hold_is_added_to_by_one_rank(source: Placement) -> None:
    """A frozen bias of products whose results are Partial."""
    (row,) = convert_value(source, PARTIAL, 2, differentiable=False) or ()
    assert (row.op, row.forward, row.backward) == ("on_first", "", "")
    assert convert_value(source, WHOLE, 2, differentiable=False) == ()
