"""Indexes, sorts and largest elements in the spellings of real code: as eager, and none mixes samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from check import error, interpret, run_eagerly
from torch import nn
from torch.nn import functional as F

from partitioner.tracing.trace import trace

BATCH, SEQ, WIDTH = 4, 6, 8
Pick = Callable[["Picking", torch.Tensor], torch.Tensor]


class Picking(nn.Module):
    """Rows of a table, and what ``pick`` makes of them."""

    def __init__(self, pick: Pick) -> None:
        super().__init__()
        self.embed, self.experts = nn.Embedding(16, WIDTH), nn.Parameter(torch.randn(3, WIDTH, 5))
        self.shift = nn.Parameter(torch.randn(3))
        self.pick = pick

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.pick(self, x).flatten(1), y)


def _last(m: Picking, x: torch.Tensor) -> torch.Tensor:
    return m.embed(x)[torch.arange(x.shape[0]), x.argmax(-1)][:, None]


def _behind(m: Picking, x: torch.Tensor) -> torch.Tensor:
    return m.embed(x)[torch.arange(len(x)), (x > 7).sum(-1) - 1].unsqueeze(1)


def _several(m: Picking, x: torch.Tensor) -> torch.Tensor:
    return m.embed(x)[torch.arange(x.shape[0])[:, None], x.topk(2).indices]


def _middle(m: Picking, x: torch.Tensor) -> torch.Tensor:
    return m.embed(x)[torch.arange(x.shape[0])[:, None], torch.arange(SEQ), x % WIDTH]


def _apart(m: Picking, x: torch.Tensor) -> torch.Tensor:
    return m.embed(x)[torch.arange(len(x)), :, x[:, 0] % WIDTH][:, None]


def _experts(m: Picking, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bsd,bsdf->bsf", m.embed(x), m.experts[x % 3]) + m.shift[x % 3][..., None]


def _sorted(m: Picking, x: torch.Tensor) -> torch.Tensor:
    values, order = m.embed(x).sort(dim=1, descending=True)
    return values * (order + 1)


def _largest(m: Picking, x: torch.Tensor) -> torch.Tensor:
    found = m.embed(x).max(dim=1, keepdim=True)
    return found.values * (found.indices + 1) + m.embed(x).min(1).values[:, None]


def _taken(m: Picking, x: torch.Tensor) -> torch.Tensor:
    return torch.take_along_dim(m.embed(x), x[..., None] % WIDTH, -1)


def _each(m: Picking, x: torch.Tensor) -> torch.Tensor:
    return m.embed(x).repeat_interleave(3, dim=1)


def _cache(m: Picking, x: torch.Tensor) -> torch.Tensor:
    cache = torch.zeros(2 * BATCH, 2 * SEQ, WIDTH)
    cache[: x.shape[0], :SEQ] = m.embed(x)
    return cache[: x.shape[0], :SEQ]


def _turned(m: Picking, x: torch.Tensor) -> torch.Tensor:
    return m.embed(x).movedim(1, 2).swapdims(1, 2).narrow(1, -4, 3)


def tokens() -> dict[str, torch.Tensor]:
    return {"x": torch.randint(16, (BATCH, SEQ)), "y": torch.randint(3, (BATCH,))}


PICKS = [_last, _behind, _several, _middle, _apart, _experts, _sorted, _largest, _taken, _each, _cache, _turned]


@pytest.mark.parametrize("pick", PICKS, ids=lambda f: f.__name__[1:])
def test_samples_stay_apart(pick: Pick) -> None:
    torch.manual_seed(0)
    model, batch = Picking(pick).double(), tokens()
    graph = trace(model, batch)
    assert error(interpret(graph, model, batch), run_eagerly(model, batch)) < 1e-12
    assert graph.inseparable is None


def test_rows_picked_from_other_samples_are_told() -> None:
    def pick(m: Picking, x: torch.Tensor) -> torch.Tensor:
        return m.embed(x)[x[:, 0] % 2]

    graph = trace(Picking(pick), tokens())
    assert graph.inseparable is not None
