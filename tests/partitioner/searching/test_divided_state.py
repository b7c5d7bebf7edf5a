"""What search proposes of ZeRO can run: no parameter of two stages of a pipeline rank is divided."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import Graph, lower, search, trace
from partitioner.errors import InputError
from partitioner.searching.splits import Splits
from tools.verify.plan_families import cluster

PINS: dict[str, str | int] = {"pp": 2, "dp": 2, "schedule": "interleaved", "micro_batch": 1}


class Shared(nn.Module):
    """All blocks read one matrix beside their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = hidden + block(hidden @ self.mix).tanh()
        return F.cross_entropy(self.head(hidden).flatten(0, 1), y.flatten())


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    batch = {"x": torch.randint(16, (2, 4)), "y": torch.randint(16, (2, 4))}
    return trace(Shared(), batch, compare=False)


def test_a_parameter_of_two_stages_of_a_rank_is_not_divided(graph: Graph) -> None:
    assert search(graph, cluster(4), 8, PINS).parallelism.zero == 0
    with pytest.raises(InputError, match="ZeRO can't divide mix, which two stages of a rank read: pin zero=0"):
        search(graph, cluster(4), 8, PINS | {"zero": 1})
    assert search(graph, cluster(4), 8, PINS | {"zero": 1, "schedule": "1f1b"}).parallelism.zero == 1


def test_an_older_plan_that_asks_for_it_is_refused(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Splits, "read_twice", lambda *_: "")
    plan = search(graph, cluster(4), 8, PINS | {"zero": 1})
    with pytest.raises(InputError, match="two stages of a rank read mix"):
        lower(graph, plan)
