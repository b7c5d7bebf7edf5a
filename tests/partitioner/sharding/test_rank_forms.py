"""What a divided op becomes on a rank, and where it stays what it is."""

from __future__ import annotations

import pytest
import torch

from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import REPLICATE, WHOLE, Placement, shard_whole
from partitioner.sharding.op_equations import Op
from partitioner.sharding.rank_forms import by_element

DROPOUT = Op("partitioner.dropout.default", ((4, 6), (4,)), (4, 6), {}, (torch.float32, torch.int64))


@pytest.mark.parametrize("placement", [WHOLE, REPLICATE, shard_whole(0, 4, 2)])
def test_dropout_of_whole_samples_is_one_ranks(placement: Placement) -> None:
    """Divided along the batch a rank has the keys of its samples, and draws what it would draw alone."""
    keys = shard_whole(0, 4, 2) if placement == shard_whole(0, 4, 2) else WHOLE
    assert by_element(DROPOUT, ("x", 0.1, "keys", 3), Strategy((placement, keys), placement), "axis") is None


def test_dropout_of_parts_of_samples_names_the_axis() -> None:
    placement = shard_whole(1, 6, 2)
    form = by_element(DROPOUT, ("x", 0.1, "keys", 3), Strategy((placement, WHOLE), placement), "axis")
    assert form == ("dropout", ("x", 0.1, "keys", 3, "axis", 1, [1, 2, 3]))
