"""Blocks are tied where the same of their values have a gradient, and what is priced follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hand_counted import chain
from torch import fx, nn
from torch.nn import functional as F

from partitioner import Graph, lower, search, trace
from partitioner.graph.graph import Unit, has_gradient, placeholders
from partitioner.graph.tied_blocks import Folded, Port, fold
from partitioner.lowering.traffic import tally, traffic
from partitioner.plan.sent_by_plan import volume
from tools.verify.plan_families import cluster

WIDTH, BATCH = 8, 4


class Stack(nn.Module):
    """Like blocks between an embedding and a head."""

    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(16, WIDTH), nn.Linear(WIDTH, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))
            for _ in range(blocks)
        )

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(h)
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())


def stack(*frozen: str, blocks: int = 6) -> Graph:
    """The graph of a stack of which some modules do not train; "0" is a block."""
    model = Stack(blocks)
    for name in frozen:
        model.get_submodule(f"blocks.{name}" if name.isdigit() else name).requires_grad_(False)
    return trace(model, {"x": torch.randint(16, (BATCH, 5)), "y": torch.randint(16, (BATCH, 5))})


@pytest.mark.parametrize(
    ("frozen", "sizes"),
    [
        ((), [6]),
        (("embed",), [1, 5]),  # the first block's input has no gradient
        (("embed", "0", "1"), [2, 1, 3]),  # nor what the frozen ones make
        (("1", "3", "5"), [3, 3]),
        (("embed", *"012345"), [6]),
    ],
)
def test_blocks_are_tied_by_what_has_a_gradient(frozen: tuple[str, ...], sizes: list[int]) -> None:
    graph = stack(*frozen)
    folded = fold(graph)
    assert [len(units) for units in folded.groups if units[0].is_block] == sizes
    differentiable = has_gradient(graph.module.graph)
    for node, representative in folded.node.items():
        assert (node in differentiable) == (representative in folded.differentiable), node


def test_frozen_blocks_cost_no_backward_and_keep_nothing() -> None:
    plan = search(stack("embed", "0", "1", "2"), cluster(2), BATCH, {"pp": 2, "recompute": "off"})
    by_unit = {name: row for row in plan.blocks for name in row.units}
    assert [by_unit[f"blocks.{n}"].backward_seconds > 0 for n in range(6)] == [False] * 3 + [True] * 3
    assert [by_unit[f"blocks.{n}"].saved_bytes > 0 for n in range(6)] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("frozen", "counts"),
    [
        ((), [12, 12]),  # 4 micro-batches of 5 x 8 float32 over each of three cuts, and back
        (("embed", "0", "1", "2"), [12, 8]),  # over the first of them nothing comes back from rank 1
    ],
)
def test_gradients_come_back_over_the_cuts_that_have_one(frozen: tuple[str, ...], counts: list[int]) -> None:
    graph = stack(*frozen)
    plan = search(graph, cluster(2), BATCH, {"pp": 2, "schedule": "interleaved", "virtual": 2, "micro_batch": 1})
    program = lower(graph, plan)
    for rank in range(2):
        sent = sum(row.bytes for row in traffic(program, rank) if row.kind == "send")
        assert sum(row.bytes for row in volume(plan, rank) if row.kind == "send") == sent
        assert tally(traffic(program, rank))["pp", "send", "send", 5 * WIDTH * 4] == counts[rank]


class Mixing(Stack):
    """Each block reads what came before it, and the embedding: the first reads one value twice."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = h = self.embed(x)
        for block in self.blocks:
            h = h + block(h * first)
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())


def test_a_block_that_reads_one_value_twice_has_a_port_for_each_place() -> None:
    folded = fold(trace(Mixing(), {"x": torch.arange(12).view(4, 3), "y": torch.arange(12).view(4, 3)}))
    (blocks,) = [units for units in folded.groups if units[0].is_block]
    assert len(blocks) == 6
    assert {len(folded.entering[unit]) for unit in blocks} == {2}


def _folded(tied: bool = False) -> tuple[Graph, Folded, dict[str, fx.Node]]:
    """Of an embedding, three blocks x + tanh(x W) and a head; nodes by unit and op."""
    graph = chain(3, tied)
    nodes = {f"{unit.name} {str(graph.nodes[name].target).split('.')[1]}": graph.nodes[name]
             for unit in graph.units for name in unit.nodes}  # fmt: skip
    return graph, fold(graph), nodes


def test_the_first_block_stands_for_all() -> None:
    graph, folded, nodes = _folded()
    assert [[u.name for u in units] for units in folded.groups] == [
        ["embed"], ["blocks.0", "blocks.1", "blocks.2"], ["head"]
    ]  # fmt: skip
    for op in ("linear", "tanh", "add"):
        assert [folded.node[nodes[f"blocks.{n} {op}"]] for n in range(3)] == [nodes[f"blocks.0 {op}"]] * 3
    assert folded.node[nodes["embed embedding"]] is nodes["embed embedding"]
    assert folded.node.keys() == set(nodes.values())
    assert folded.body(1) == [nodes[f"blocks.0 {op}"] for op in ("linear", "tanh", "add")]


def test_what_enters_a_block_is_the_embeddings_once_and_a_blocks_twice() -> None:
    _, folded, nodes = _folded()
    embed, block = nodes["embed embedding"], nodes["blocks.0 add"]
    assert folded.sources == {Port(1, 0): {embed: 1, block: 2}, Port(2, 0): {block: 1}}
    assert folded.port_of == {(1, embed): Port(1, 0), (2, nodes["blocks.2 add"]): Port(2, 0)}
    assert list(folded.entering.values()) == [
        (), (embed,), (nodes["blocks.0 add"],), (nodes["blocks.1 add"],), (nodes["blocks.2 add"],)
    ]  # fmt: skip


@pytest.mark.parametrize(("tied", "members"), [(False, [1, 3, 1]), (True, [1, 3])])
def test_parameters_that_blocks_read_at_one_place_share_a_layout(tied: bool, members: list[int]) -> None:
    graph, folded, _ = _folded(tied)
    named = placeholders(graph.module.graph, "parameter")
    weights = [named[f"blocks.{n}.0.weight"] for n in range(3)]
    assert [folded.parameter[weight] for weight in weights] == [weights[0]] * 3
    assert sorted(folded.members.values()) == sorted(members)
    assert folded.members[weights[0]] == 3


class Gated(nn.Module):
    """A block that is given a second value, or has a parameter in its place."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.scale = nn.Parameter(torch.ones(5, WIDTH)) if own else None

    def forward(self, h: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return h + self.down(self.up(h).relu()) * (other if self.scale is None else self.scale)


class Fed(nn.Module):
    """Blocks alike op by op: every other one reads a parameter, or an input, in place of what an earlier one made."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by, self.embed, self.head = by, nn.Embedding(16, WIDTH), nn.Linear(WIDTH, 16)
        self.blocks = nn.ModuleList(Gated(by == "parameter" and n % 2 == 1) for n in range(6))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = h = self.embed(x)
        free = x.float()[..., None].expand(-1, -1, WIDTH)
        for n, block in enumerate(self.blocks):
            h = block(h, free if self.by == "input" and n % 2 else first)
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())


@pytest.mark.parametrize("by", ["parameter", "input"])
def test_blocks_that_are_fed_otherwise_are_of_another_group(by: str) -> None:
    """Even where tracing has called them of one kind."""
    tokens = torch.arange(20).view(BATCH, 5) % 16
    graph = trace(Fed(by), {"x": tokens, "y": tokens}, compare=False)
    nodes = [name for unit in graph.units if unit.is_block for name in unit.nodes]
    each, rest = divmod(len(nodes), 6)
    blocks = [Unit(f"blocks.{n}", tuple(nodes[n * each : (n + 1) * each]), 1, True) for n in range(6)]
    assert not rest
    folded = fold(replace(graph, units=(graph.units[0], *blocks, graph.units[-1])))
    assert [[unit.name for unit in units] for units in folded.groups if units[0].is_block] == [
        ["blocks.0", "blocks.2", "blocks.4"], ["blocks.1", "blocks.3", "blocks.5"]
    ]  # fmt: skip
