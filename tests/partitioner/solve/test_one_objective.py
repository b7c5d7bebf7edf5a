"""What the choice of layouts adds up is what prices add up: ops, conversions, what attention sends over cp."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_plans import graph_of

from partitioner import Cluster
from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_units
from partitioner.graph.tied_blocks import fold
from partitioner.layouts.strategies import space
from partitioner.solve.choices import Choices, Prices
from partitioner.solve.solve import solve

CLUSTER = Cluster.load("dgx-a100")


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("name", "tp", "cp"), [("gpt", 1, 1), ("gpt", 2, 1), ("llama", 2, 2), ("t5", 2, 1)])
def test_the_objective_is_the_price(name: str, tp: int, cp: int, overlap: bool) -> None:
    """Of one micro-batch; a millionth is for what breaks ties."""
    cluster = replace(CLUSTER, software=replace(CLUSTER.software, overlap_tensor=overlap))
    folded = fold(graph_of(name))
    setting = Setting.of(folded, cluster, {"tp": tp, "cp": cp})
    prices, options = Prices(cluster, setting, 4), space(folded, "tp", tp)
    solution = solve(folded, options, prices)
    choices = Choices(folded, options, prices, lambda value, placement: True)
    held = sum(choices.parameter_cost(node, layout[0]) for node, layout in solution.parameters.items())
    priced = price_units(setting, solution, cluster)
    seconds = sum(priced.unit(unit).surrogate for unit in folded.graph.units)
    assert solution.seconds - held == pytest.approx(seconds, rel=1e-4)
    if not overlap:
        assert seconds == pytest.approx(sum(priced.unit(unit).seconds.total for unit in folded.graph.units))
