"""Blocks without a twin: found by the modules that hold their ops, cut where the fewest values cross."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.hierarchical import U, Widths, Windows, images, one_layer_each
from stack import Block, text
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import Cluster, search
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import operands
from partitioner.tracing.trace import trace
from partitioner.tracing.unlike_blocks import MOST, Modules, unlike_blocks


def _names(graph: Graph) -> list[str]:
    return [u.name for u in graph.blocks]


def _kinds(graph: Graph) -> int:
    return len({u.kind for u in graph.blocks})


def _crossing(graph: Graph) -> list[int]:
    """How many values cross into each block."""
    at = {name: n for n, unit in enumerate(graph.units) for name in unit.nodes}
    found: list[int] = []
    for n, unit in enumerate(graph.units):
        later = [graph.nodes[name] for name, place in at.items() if place >= n]
        read = {o for node in later for o in operands(node) if at.get(o.name, n) < n}
        found += [len(read)] if unit.is_block else []
    return found


def test_windows_by_stage_are_blocks_each() -> None:
    graph = trace(Windows(2, 2), images(4))
    assert _names(graph) == [f"stages.{s}.blocks.{b}" for s in range(2) for b in range(2)]
    assert _kinds(graph) == 4
    assert _crossing(graph) == [1, 1, 1, 1]


def test_a_run_of_pairs_stays_and_what_stands_ahead_of_it_is_divided() -> None:
    graph = trace(Windows(2, 2, 4), images(4))
    single = [f"stages.{s}.blocks.{b}" for s in range(2) for b in range(2)]
    assert _names(graph) == [*single, "stages.2.blocks", "stages.2.blocks#2"]
    assert graph.blocks[4].kind == graph.blocks[5].kind


def test_a_u_is_cut_between_its_levels() -> None:
    graph = trace(U(16, 32, 64), text(4))
    assert _names(graph) == ["down.0", "down.1", "middle", "up.0", "up.1"]
    assert graph.blocks[0].kind == graph.blocks[4].kind
    assert _crossing(graph) == [1, 1, 2, 2, 1]


def test_unlike_widths_are_blocks_each() -> None:
    graph = trace(Widths(16, 32, 48, 64), text(4))
    assert _names(graph) == [f"blocks.{n}" for n in range(4)]
    assert _crossing(graph) == [1, 1, 1, 1]


def test_an_encoder_and_a_decoder_of_a_layer_each_are_two_blocks() -> None:
    graph = trace(*one_layer_each(4))
    assert _names(graph) == ["model.encoder", "model.decoder"]


class Sum(nn.Module):
    """Adds what each part makes to what the part read: attention and an MLP, or whole blocks."""

    def __init__(self, width: int, *hidden: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_mlp(width, h) for h in hidden)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = x + part(F.layer_norm(x, x.shape[-1:]))
        return x


def _mlp(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def _text_model(body: nn.Module, width: int = 32) -> nn.Module:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.body, self.head = nn.Embedding(64, width), body, nn.Linear(32, 64)

        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.head(self.body(self.emb(tokens))).flatten(0, -2), labels.flatten())

    return Text()


def test_parts_that_are_added_are_cut_behind_the_sum_where_nothing_else_is() -> None:
    graph = trace(_text_model(Sum(32, 64, 96, 128, 160)), text(4))
    assert _names(graph) == [f"body.parts.{n}" for n in range(4)]
    assert _crossing(graph) == [1, 1, 1, 1]


def test_parts_that_are_added_are_one_block_where_there_are_others() -> None:
    graph = trace(_text_model(nn.Sequential(Sum(32, 64, 96), Sum(32, 48, 80))), text(4))
    assert _names(graph) == ["body.0", "body.1"]


def test_one_unlike_block_beside_blocks_that_are_alike_is_none() -> None:
    ahead = nn.Sequential(Sum(16, 24, 48), nn.Linear(16, 32))
    graph = trace(_text_model(nn.Sequential(ahead, *(Block() for _ in range(3))), 16), text(4))
    assert _names(graph) == ["body.1", "body.2", "body.3"]


class Side(nn.Module):
    """Parts that all read the same."""

    def __init__(self, *hidden: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_mlp(32, h) for h in hidden)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).sum(0)


def test_what_stands_side_by_side_is_not_divided() -> None:
    """Experts, towers: nothing follows from one to the next."""
    assert _names(trace(_text_model(Side(32, 48, 64)), text(4))) == []
    graph = trace(_text_model(nn.Sequential(Side(32, 48, 64), Side(80, 96, 112))), text(4))
    assert _names(graph) == ["body.0", "body.1"]


class Turned(nn.Module):
    def __init__(self, *hidden: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_mlp(32, h) for h in hidden)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            turned = part(x).sin()
            x = turned + turned.square()
        return x


@pytest.mark.parametrize(
    ("value", "crosses"), [(torch.zeros(1), True), (3, False), ((torch.zeros(1), torch.zeros(1)), False)]
)
def test_what_is_no_tensor_does_not_cross_a_cut(value: object, crosses: bool) -> None:
    """It is one value, of no bytes, where a tensor would be cut behind, and yet no stage can send it."""
    graph = trace(_text_model(Turned(48, 64, 96)), text(4), compare=False)
    body = [graph.nodes[name] for unit in graph.units for name in unit.nodes]
    turned = [n for n in body if str(n.target) == "aten.sin.default"]
    for node in turned:
        node.meta["val"] = value
    live = np.ones(len(body) + 1)
    live[[body.index(n) + 1 for n in turned]] = 0
    found = unlike_blocks(Modules(body, set()), live, (0, len(body)), False)
    assert list(found.values()) == [f"body.parts.{n}" for n in range(3)]
    assert [body[start - 1] in turned for start, _ in found] == [False, crosses, crosses]


def test_many_unlike_blocks_are_joined() -> None:
    graph = trace(Widths(*range(8, 8 * (MOST + 6), 8)), text(4), compare=False)
    assert len(graph.blocks) == MOST
    assert len({u.name for u in graph.units}) == len(graph.units)


@pytest.mark.parametrize("pp", [2, pytest.param(4, marks=pytest.mark.parity)])
def test_stages_of_unlike_blocks_are_planned(pp: int) -> None:
    graph = trace(Windows(2, 2), images(4))
    plan = search(graph, Cluster.load("local-cpu", devices=4), 8, {"pp": pp})
    assert plan.parallelism.mesh["pp"] == pp
    assert sum(map(len, plan.decisions.stages)) == len(graph.units)
