"""A model around one change of its hidden state, and the comparison of its traced graph with the eager module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from partitioner.comparing.graph_float64 import promote
from partitioner.graph.interpret import interpret as run
from partitioner.graph.resize_batch import resize
from partitioner.tracing.trace import trace

SEQUENCE, WIDTH = 4, 6
Change = Callable[["Net", torch.Tensor, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """``change`` takes the hidden state (b, s, d), which has a gradient, and the tokens (b, s); returns one alike."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.change = change
        self.embed, self.frozen = nn.Embedding(8, WIDTH), nn.Embedding(8, WIDTH).requires_grad_(False)
        self.linear, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8)
        self.register_buffer("average", torch.ones(WIDTH))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("variance", torch.ones(WIDTH))
        self.plain = torch.ones(WIDTH)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = self.change(self, self.linear(self.embed(tokens)), tokens)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())


def batch_of(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return {name: torch.randint(0, 8, (size, SEQUENCE), generator=generator) for name in ("tokens", "labels")}


def assert_equal_to_eager(net: nn.Module, wide: bool = True, sizes: tuple[int, ...] = (5, 3)) -> None:
    """At the traced batch size and at another one; ``wide``: in float64."""
    graph = trace(net, batch_of(5))
    graph, net = (promote(graph), net.double()) if wide else (graph, net)
    for size in sizes:
        batch = batch_of(size)
        net.zero_grad()
        expected = net(**{name: value.clone() for name, value in batch.items()})
        expected.backward()
        weights = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in net.named_parameters()}
        loss = run(resize(graph, size), weights, batch)
        loss.backward()
        limit = 1e-12 if wide else 1e-6
        torch.testing.assert_close(loss, expected.to(loss.dtype), rtol=limit, atol=limit)
        for name, parameter in net.named_parameters():
            given, wanted = weights[name].grad, parameter.grad
            zero = torch.zeros_like(parameter)
            torch.testing.assert_close(
                zero if given is None else given, zero if wanted is None else wanted, rtol=limit, atol=limit
            )
