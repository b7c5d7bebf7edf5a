"""Models traced with the shortcut through like blocks, and without."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Gpt, GptBlock, make
from torch import fx, nn
from torch.nn import functional as F

from partitioner import trace
from partitioner.graph.graph import Graph
from partitioner.graph.tied_blocks import fold
from partitioner.layouts.from_plan import graph_digest
from partitioner.tracing.repeated_modules import Run
from partitioner.tracing.unroll_blocks import unroll

TRACE = importlib.import_module("partitioner.tracing.trace")


Batch = dict[str, torch.Tensor]


class Traced:
    """A model traced with and without the shortcut, and the (blocks, children a block) of each run that was taken."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        taken: list[tuple[Run, ...]] = []

        def noted(graph: fx.Graph, runs: tuple[Run, ...]) -> fx.Graph:
            result = unroll(graph, runs)
            taken.append(runs)
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TRACE, "unroll", noted)
            self.graph = trace(model, batch, compare=False)
            patch.setattr(TRACE, "alike_blocks", lambda *arguments: ())
            self.whole = trace(model, batch, compare=False)
        assert len(taken) == 2
        assert not taken[1]
        self.runs = [(len(run.blocks), len(run.blocks[0])) for run in taken[0]]
        self.unread = [run.is_unread for run in taken[0]]


def rows_of(graph: Graph) -> list[tuple[object, ...]]:
    """All that is known of each node."""
    rows: list[tuple[object, ...]] = []
    for node in graph.module.graph.nodes:
        value: Any = node.meta.get("val")
        strides = value.stride() if isinstance(value, torch.Tensor) else None
        words = (node.op, node.name, str(node.target), str(node.args), str(node.kwargs), str(value), strides)
        rows.append((*words, *(node.meta.get(key) for key in ("modules", "source", "kind", "trains"))))
    return rows


def assert_same(found: Graph, wanted: Graph) -> None:
    assert rows_of(found) == rows_of(wanted)
    assert list(found.parameters.items()) == list(wanted.parameters.items())
    assert list(found.buffers) == list(wanted.buffers)
    assert all(torch.equal(b, wanted.buffers[n]) for n, b in found.buffers.items() if not b.is_meta)
    for name in ("inputs", "batch", "units", "constants", "prelude", "batch_layout", "inseparable"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert graph_digest(fold(found)) == graph_digest(fold(wanted))
    assert dict(found.digraph.nodes) == dict(wanted.digraph.nodes)  # saved bytes too: the same storages


class Deep(Gpt):
    """Gpt whose blocks are made, and run, to order."""

    def __init__(self, block: Callable[[int], nn.Module], layers: int = 6) -> None:
        super().__init__(layers=0)
        self.blocks = nn.ModuleList(block(index) for index in range(layers))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.run(self.embed(tokens))
        return F.cross_entropy(self.head(self.norm(x)).transpose(1, 2), labels)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Block(GptBlock):
    """A block that knows its number and may ask for it."""

    def __init__(self, layer_idx: int, factor: Callable[[int], float] = lambda index: 1.0) -> None:
        super().__init__(48, 6, 0.0)
        self.layer_idx, self.factor = layer_idx, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.factor(self.layer_idx))


def deep(model: nn.Module) -> tuple[nn.Module, Batch]:
    return model.train(), make("gpt")[1]
