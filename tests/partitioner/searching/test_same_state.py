"""A plan of a model's other graph, whose parameters lie as under the first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partitioner import lower, search, trace
from partitioner.errors import InputError
from partitioner.searching.same_state import with_state_of
from tools.verify.plan_families import cluster


class Sliced(nn.Module):
    """Adds as many rows of a table as a text has positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.rows = nn.Embedding(16, 8), nn.Parameter(torch.randn(12, 8))
        self.up, self.head = nn.Linear(8, 32), nn.Linear(32, 16)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.up(self.tokens(tokens) + self.rows[: tokens.shape[1]]).relu()
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def batch(length: int) -> dict[str, torch.Tensor]:
    return {name: torch.randint(16, (2, length)) for name in ("tokens", "labels")}


def test_the_parameter_is_named_that_can_not_be_read_as_it_lies() -> None:
    module = Sliced()
    graph, shorter = trace(module, batch(12)), trace(module, batch(7))
    plan = search(graph, cluster(2), 4, {"tp": 2, "rows": "shard:0"})
    stages = {name: p.stages for name, p in lower(graph, plan).parameters.items()}
    with pytest.raises(InputError, match=r"divides rows as S\(0\).* plan with the pin rows=replicate"):
        with_state_of(plan, shorter, stages, 2)
    plan = search(graph, cluster(2), 4, {"tp": 2, "rows": "replicate"})
    assert with_state_of(plan, shorter, stages, 2).parameters["rows"] == plan.parameters["rows"]
