"""A small model of like blocks with a middle made to order, and its graph held against the module in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from check import Result, error, interpret
from torch import nn
from torch.nn import functional as F

from partitioner import trace
from partitioner.comparing.graph_float64 import promote
from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.graph.resize_batch import resize
from partitioner.user_code.outputs import loss_of

Batch = dict[str, torch.Tensor]
WIDTH, CLASSES = 8, 5
Middle = Callable[[nn.Module, torch.Tensor, int], torch.Tensor]


class Net(nn.Module):
    """Blocks that are alike but for what ``middle`` makes of a block's number."""

    def __init__(self, middle: Middle, blocks: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.blocks = nn.ModuleList(Block(middle, n) for n in range(blocks))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy(self.last(h).flatten(0, 1), y.flatten())


class Block(nn.Module):
    def __init__(self, middle: Middle, number: int) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.middle, self.number = middle, number

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.middle(self, self.up(self.norm(h)), self.number)


def batch_of(samples: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 3, WIDTH, generator=generator)
    return {"x": x, "y": torch.randint(CLASSES, (samples, 3), generator=generator)}


def eagerly(model: nn.Module, batch: Batch) -> Result:
    model.zero_grad(set_to_none=True)
    loss = loss_of(model(**batch))
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(model: nn.Module, batch: Batch) -> Graph:
    """The graph, which gives the model's loss and gradients in float64, with all samples and with one less."""
    graph = trace(model, batch)
    model = model.double()
    batch = {n: t.double() if t.is_floating_point() else t for n, t in batch.items()}
    wide = promote(graph)
    assert error(interpret(wide, model, batch), eagerly(model, batch)) < 1e-12
    fewer = {n: t[:-1] for n, t in batch.items()}
    assert error(interpret(resize(wide, len(fewer["x"])), model, fewer), eagerly(model, fewer)) < 1e-12
    return graph


def plain(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
    return h


def refused(model: nn.Module, batch: Any = None) -> str:
    with pytest.raises(InputError) as caught:
        trace(model, batch or batch_of())
    assert "\n" not in str(caught.value)
    return str(caught.value)
