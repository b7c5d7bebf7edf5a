"""A unit is cut where what it reads lies in another stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from partitioner import Graph, trace
from partitioner.graph.graph import Unit, unit_names
from partitioner.graph.nodes import is_parameter, operands
from partitioner.graph.units_by_stage import divided


class Three(nn.Module):
    """Products one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x)).relu()).square().mean()


@pytest.fixture(scope="module")
def graph() -> Graph:
    found = trace(Three(), {"x": torch.randn(2, 4)})
    whole = Unit("whole", tuple(n for unit in found.units for n in unit.nodes), 0, False)
    return replace(found, units=(whole,))


def read_by(graph: Graph) -> list[str]:
    """The letters of the products in each unit."""
    nodes = graph.nodes
    read = ((o for name in unit.nodes for o in operands(nodes[name]) if is_parameter(o)) for unit in graph.units)
    return ["".join(sorted({o.meta["source"][0] for o in own})) for own in read]


def stages(**rows: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{module}.{name}": own for module, own in rows.items() for name in ("weight", "bias")}


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        (stages(a=(0,), b=(1,), c=(1,)), ["a", "bc"]),
        (stages(a=(0,), b=(0, 1), c=(1,)), ["ab", "c"]),
        (stages(a=(0,), b=(1,), c=(2,)), ["a", "b", "c"]),
        (stages(a=(0, 1), b=(1, 2), c=(0, 2)), ["ab", "c"]),  # b of stage 1, which has a too
    ],
    ids=str,
)
def test_units_are_cut_where_no_stage_reads_both(
    graph: Graph, where: dict[str, tuple[int, ...]], wanted: list[str]
) -> None:
    found = divided(graph, where)
    assert read_by(found) == wanted
    assert [n for unit in found.units for n in unit.nodes] == [n for unit in graph.units for n in unit.nodes]
    assert len(unit_names(found)) == len({u.kind for u in found.units}) == len(wanted)


@pytest.mark.parametrize("where", [{}, stages(a=(0,), c=(0,)), stages(a=(0, 1), b=(1,), c=(1, 2))], ids=str)
def test_others_are_left_whole(graph: Graph, where: dict[str, tuple[int, ...]]) -> None:
    assert divided(graph, where).units == graph.units
