from __future__ import annotations

import random
import string

import pytest
import torch
from check import traced
from models import SWEEP, make
from torch import nn
from torch.nn import functional as F

from partitioner import Cluster, Plan, search
from partitioner.graph.graph import Graph
from partitioner.tracing.trace import trace

_BLOCKS = {
    "gpt": ["blocks.{}"],
    "gpt2": ["transformer.h.{}"],
    "opt": ["model.decoder.layers.{}"],
    "neox": ["gpt_neox.layers.{}"],
    "bert": ["bert.encoder.layer.{}"],
    "t5": ["encoder.block.{}", "decoder.block.{}"],
    "vit": ["vit.layers.{}"],
    "whisper": ["model.encoder.layers.{}", "model.decoder.layers.{}"],
}
_DEPTHS = {"gemma2": 4, "gemma3": 6}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", SWEEP)
def test_blocks_are_the_layers_cut_at_their_boundaries(name: str, dropout: float) -> None:
    graph = traced(name, dropout)[1]
    stacks = _BLOCKS.get(name, ["model.layers.{}"])
    names = [stack.format(i) for stack in stacks for i in range(_DEPTHS.get(name, 3))]
    assert [u.name for u in graph.blocks] == names
    kinds = [u.kind for u in graph.blocks]
    if name != "gemma3":
        assert len(set(kinds)) == len(stacks)
    for unit in graph.blocks:
        modules = {graph.digraph.nodes[n]["module"] for n in unit.nodes}
        assert all(m == unit.name or m.startswith(unit.name + ".") for m in modules)


def test_sliding_and_global_layers_differ() -> None:
    kinds = [u.kind for u in traced("gemma3")[1].blocks]
    assert kinds[:5] == [kinds[0]] * 5
    assert kinds[5] != kinds[0]


class Chain(nn.Module):
    """Blocks of two shapes in turn between two equal layers, to be found by structure alone."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, w), nn.Tanh(), nn.Linear(w, 8)) for w in widths)
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(F.layer_norm(x, (8,)))
        return F.cross_entropy(self.head(x), y)


_WIDTHS = [((16,) * 5, 5), ((16, 32) * 3, 3), ((16, 16, 16, 32, 32, 32), 6), ((16,), 0)]


@pytest.mark.parametrize(("widths", "count"), _WIDTHS)
def test_periods_are_found(widths: tuple[int, ...], count: int) -> None:
    graph = trace(Chain(widths), {"x": torch.randn(4, 8), "y": torch.arange(4)})
    assert len(graph.blocks) == count
    assert len({u.kind for u in graph.blocks}) == min(count, 2 if count == 6 else 1)


class Wrapper(nn.Module):
    """Calls a model; says nothing about it."""

    def __init__(self, inner: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.add_module(_word(), inner)
        self.names = names

    def forward(self, **batch: torch.Tensor) -> object:
        return next(self.children())(**batch)


def _word() -> str:
    return "".join(random.choices(string.ascii_lowercase, k=9))


def _rename(model: nn.Module) -> nn.Module:
    """Every module and parameter under another name; attribute access by the old name still works for its code."""
    for module in list(model.modules()):
        names = {}
        for table in (module._modules, module._parameters):
            for old in [n for n, v in table.items() if v is not None and not n.isdigit()]:
                names[old] = _word()
                table[names[old]] = table.pop(old)
        if names:
            module.__dict__["_renamed"] = names
            module.__class__ = _alias(type(module))
    return model


_ALIASES: dict[type[nn.Module], type[nn.Module]] = {}


def _alias(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _ALIASES:

        def find(self: nn.Module, name: str) -> object:
            return kind.__getattr__(self, self.__dict__.get("_renamed", {}).get(name, name))

        _ALIASES[kind] = type(_word().title(), (kind,), {"__getattr__": find})
    return _ALIASES[kind]


def _structure(graph: Graph) -> object:
    """All of a graph but names."""
    number = {name: i for i, name in enumerate(graph.nodes)}
    ops = [
        (str(n.target) if n.op == "call_function" else n.meta.get("kind"), [number[a.name] for a in n.all_input_nodes])
        for n in graph.module.graph.nodes
    ]
    units = [([number[n] for n in u.nodes], u.kind, u.is_block) for u in graph.units]
    layouts = {number[n]: shard for n, shard in graph.batch_layout.items()}
    return ops, units, layouts, [p.shape for p in graph.parameters.values()]


@pytest.mark.parametrize("name", SWEEP)
def test_nothing_depends_on_names(name: str) -> None:
    random.seed(0)
    model, batch = make(name, dropout=0.1)
    want = traced(name, 0.1)[1]
    renamed = Wrapper(Wrapper(_rename(model), list(batch)), list(batch)).train()
    found = trace(renamed, batch, compare=False)
    assert _structure(found) == _structure(want)
    assert not {*found.parameters} & {*want.parameters}


def _decided(plan: Plan) -> object:
    """All of a plan but names."""
    ops = [[(o.op, o.shape, o.operands, o.result) for o in b.ops] for b in plan.blocks]
    units = [(len(b.units), b.is_block, b.ports, b.saved_bytes) for b in plan.blocks]
    decisions = plan.decisions
    stages = [len(stage) for stage in decisions.stages]
    return ops, units, plan.parallelism, stages, sorted(map(str, plan.parameters.values())), plan.cost


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_the_plan_does_not_depend_on_names(name: str) -> None:
    random.seed(1)
    model, batch = make(name, dropout=0.1)
    cluster = Cluster.load("dgx-a100", devices=4)
    plan = search(traced(name, 0.1)[1], cluster, 8, {"tp": 2, "pp": 2})
    renamed = Wrapper(Wrapper(_rename(model), list(batch)), list(batch)).train()
    found = search(trace(renamed, batch), cluster, 8, {"tp": 2, "pp": 2})
    assert _decided(found) == _decided(plan)
    assert not {*found.parameters} & {*plan.parameters}


class Scaled(nn.Module):
    """Each block reads its own place of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)) for _ in range(4))
        self.scales, self.embed, self.head = nn.Parameter(torch.ones(4, 2)), nn.Embedding(16, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = h = self.embed(x)
        for n, block in enumerate(self.blocks):
            h = self.scales[n, 0] * h + self.scales[n, 1] * first
            h = h + block(F.layer_norm(h, (8,)))
        return F.cross_entropy(self.head(h), y)


def test_places_of_one_vector_do_not_tell_blocks_apart() -> None:
    graph = trace(Scaled(), {"x": torch.arange(4), "y": torch.arange(4)})
    assert [u.name for u in graph.blocks] == [f"blocks.{n}" for n in range(4)]
    assert len({u.kind for u in graph.blocks}) == 1


class Skipping(nn.Module):
    """Blocks, some of which are given a skip first, with a weight of its own or without."""

    def __init__(self, skips: tuple[int, ...], weighted: bool, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)) for _ in range(blocks)
        )
        self.scales, self.embed, self.head = nn.Parameter(torch.ones(blocks)), nn.Embedding(16, 8), nn.Linear(8, 5)
        self.skips, self.weighted = skips, weighted

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = h = self.embed(x)
        for n, block in enumerate(self.blocks):
            if n in self.skips:
                h = h + (self.scales[n] * first if self.weighted else first)
            h = h + block(h)
        return F.cross_entropy(self.head(h), y)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("skips", [(1, 3), (2, 3), (1, 2, 3), (3,), (0, 2)])
def test_extras_between_some_blocks_are_of_none(skips: tuple[int, ...], weighted: bool) -> None:
    graph = trace(Skipping(skips, weighted), {"x": torch.arange(4), "y": torch.arange(4)})
    assert len(graph.blocks) == 4
    assert len({u.kind for u in graph.blocks}) == 1
