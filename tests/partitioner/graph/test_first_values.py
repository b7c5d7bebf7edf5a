"""Blocks that read the first value are of one kind, whether they were traced once or each by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from traced_twice import Block, Deep, Traced, assert_same, deep


class Mixing(Deep):
    """Blocks read places of one vector, in the model's forward."""

    def __init__(self) -> None:
        super().__init__(Block)
        self.scales = nn.Parameter(torch.linspace(0.5, 1.5, 12).view(6, 2))

    def run(self, x: torch.Tensor) -> torch.Tensor:
        first = x
        for index, block in enumerate(self.blocks):
            x = block(self.scales[index, 0] * x + self.scales[index, 1] * first)
        return x


class OwnScales(Block):
    """A block that mixes the first value in by itself."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__(layer_idx)
        self.scales = nn.Parameter(torch.tensor([1.0, 0.5]))

    def forward(self, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return super().forward(self.scales[0] * x + self.scales[1] * first)


class Handing(Deep):
    """Hands the first value to every block, the first one too."""

    def run(self, x: torch.Tensor) -> torch.Tensor:
        first = x
        for block in self.blocks:
            x = block(x, first)
        return x


@pytest.mark.parametrize("make_model", [Mixing, lambda: Handing(OwnScales)])
def test_blocks_that_read_the_first_value_are_of_one_kind_either_way(make_model: Callable[[], nn.Module]) -> None:
    traced = Traced(*deep(make_model()))
    assert_same(traced.graph, traced.whole)
    assert len(traced.graph.blocks) == 6
    assert len({unit.kind for unit in traced.graph.blocks}) == 1
