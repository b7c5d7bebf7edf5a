"""Search's plan is the best of every layout of every op and every cut into stages, each priced as a plan is priced."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from splits import split_of
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import Cluster, Graph, search, trace
from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_each
from partitioner.cost.unit_cost import Priced
from partitioner.graph.graph import Unit
from partitioner.graph.nodes import operands
from partitioner.graph.resize_batch import resize
from partitioner.graph.tied_blocks import Folded, Port, Value, fold
from partitioner.layouts.solution import Solution
from partitioner.layouts.strategies import space
from partitioner.sharding.equations import Strategies, Strategy
from partitioner.sharding.layout import PARTIAL, WHOLE, Placement
from partitioner.solve.choices import Choices, Prices, Read
from partitioner.step.split import stage_sums
from partitioner.step.step_seconds import price

BATCH, MICRO_BATCH = 4, 2
WAYS = {1: [("1f1b", 1)], 2: [("1f1b", 1), ("gpipe", 1)]}
CLUSTER = Cluster.load("dgx-a100", devices=2)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class Tiny(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.head = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x), labels)


def tiny(width: int, classes: int) -> Graph:
    with torch.device("meta"):
        module = Tiny(width, classes)
    return trace(module, {"x": torch.zeros(2, width), "labels": torch.zeros(2, dtype=torch.int64)}, compare=False)


def every_layout(folded: Folded, setting: Setting, cluster: Cluster) -> Iterator[Solution]:
    """All that are legal: op by op, what it reads converted from where it lies."""
    options = space(folded, "tp", setting.ranks)
    choices = Choices(folded, options, Prices(cluster, setting, 1), lambda value, placement: True)
    nodes = [n for g in range(len(folded.groups)) for n in folded.body(g)]
    held = [v for v, rows in choices.of.items() if rows[0].strategy is None]
    last = next(n for n in folded.graph.module.graph.nodes if n.op == "output").all_input_nodes[0]

    def legal(made: dict[Value, Placement], value: Value, target: Placement) -> bool:
        if value in folded.parameter.values():  # a parameter lies as its op reads it
            return made[value] == (WHOLE if target == PARTIAL else target)
        return choices.conversion_cost(Read(value, 1.0, {}), (made[value],), (target,)) is not None

    def runs(node: torch.fx.Node, strategy: Strategy, made: dict[Value, Placement]) -> bool:
        group = next(g for g in range(len(folded.groups)) if node in folded.body(g))
        read = [(choices.folded.value_of(group, o), t) for o, t in zip(operands(node), strategy.operands, strict=True)]
        return all(value is None or legal(made, value, target) for value, target in read)

    def grown(made: dict[Value, Placement], strategies: dict[torch.fx.Node, Strategy]) -> Iterator[Solution]:
        if len(strategies) == len(nodes):
            entering = [(p, s) for p, sources in folded.sources.items() for s in sources]
            if all(legal(made, s, made[p]) for p, s in entering) and any(made[s] == made[p] for p, s in entering):
                ports = {v: (made[v],) for v in held if isinstance(v, Port)}
                rows = {v: (made[v],) for v in held if isinstance(v, torch.fx.Node)}
                together = {node: Strategies((strategy,)) for node, strategy in strategies.items()}
                yield Solution(setting.axes, together, ports, rows, math.nan)
            return
        node = nodes[len(strategies)]
        for choice in choices.of[node]:
            strategy = choice.strategy
            if strategy is not None and runs(node, strategy, made):
                yield from grown({**made, node: choice.placement}, {**strategies, node: strategy})

    assert folded.node[last] is nodes[-1]
    for placements in itertools.product(*([c.placement for c in choices.of[v]] for v in held)):
        yield from grown(dict(zip(held, placements, strict=True)), {})


def every_cut(units: tuple[Unit, ...], stages: int) -> Iterator[tuple[tuple[Unit, ...], ...]]:
    for inner in itertools.combinations(range(1, len(units)), stages - 1):
        found = tuple(units[a:b] for a, b in itertools.pairwise([0, *inner, len(units)]))
        if all(any(u.is_block for u in stage) for stage in found):
            yield found


def steps(priced: Priced, micro_batch: int, depths: tuple[int, ...]) -> Iterator[float]:
    """Seconds of a step of each pp of ``depths``, schedule and cut."""
    tp = priced.ranks
    for pp in [n for n in depths if CLUSTER.devices % (tp * n) == 0]:
        many, rest = divmod(BATCH, (dp := CLUSTER.devices // (tp * pp)) * micro_batch)
        cuts = () if rest else every_cut(priced.folded.graph.units, pp)
        for units, (kind, virtual) in itertools.product(cuts, WAYS[pp]):
            sums = tuple(stage_sums(priced, u) for u in units)
            split = split_of(sums, units, many, kind, virtual, pp=pp, dp=dp, tp=tp)
            yield price(priced, split).step_seconds


@pytest.mark.parametrize(("tp", "pins"), [(1, {}), (1, {"pp": 2}), pytest.param(2, {}, marks=pytest.mark.parity)])
def test_search_finds_the_best_of_all_layouts_and_cuts(tp: int, pins: dict[str, str | int]) -> None:
    graph, best, tried = tiny(1024, 512), math.inf, 0
    folded = fold(resize(graph, MICRO_BATCH))
    setting = Setting.of(folded, CLUSTER, {"tp": tp})
    for priced in price_each(setting, every_layout(folded, setting, CLUSTER), CLUSTER):
        for seconds in steps(priced, MICRO_BATCH, (2,) if pins else (1, 2)):
            best, tried = min(best, seconds), tried + 1
    found = search(graph, CLUSTER, BATCH, {"micro_batch": MICRO_BATCH, "tp": tp, "zero": 0, **pins})
    assert tried >= (10_000 if tp > 1 else 4)
    assert found.cost.step_seconds == pytest.approx(best, rel=1e-9)
