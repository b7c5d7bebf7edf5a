"""A plan's decisions as they are, priced again: on another cluster, or after what prices it has changed."""

from __future__ import annotations

from collections.abc import Sequence

from partitioner.cluster import Cluster
from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_units
from partitioner.cost.unit_cost import Priced
from partitioner.graph.graph import Graph, unit_names
from partitioner.graph.resize_batch import at_batch, resize
from partitioner.graph.tied_blocks import fold
from partitioner.layouts.from_plan import recall
from partitioner.layouts.solution import Solution
from partitioner.plan.derived_rows import Cost
from partitioner.plan.parallelism import Parallelism
from partitioner.plan.plan import Plan
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.searching.splits import Tried
from partitioner.step.rank_memory import RankMemory
from partitioner.step.split import Split, StageSums, idle_stage, stage_sums
from partitioner.step.step_seconds import price


class Repricer:
    """A plan of a graph; what does not depend on a cluster is found once.

    Raises InputError where the plan is stale or of another model.
    """

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.plan = plan
        folded = fold(graph)
        size = plan.parallelism.micro_batch
        self.folded = at_batch(folded, size) or fold(resize(graph, size))
        self.solution: Solution = recall(plan, self.folded)

    def tried(self, cluster: Cluster) -> Tried:
        """As a candidate of a search on ``cluster``, which must have the plan's number of devices."""
        decisions, parallelism = self.plan.decisions, self.plan.parallelism
        setting = Setting.of(self.folded, cluster, parallelism.mesh, parallelism.refined)
        priced = price_units(setting, self.solution, cluster)
        return decided(priced, parallelism, decisions.stages, decisions.recomputed)

    def cost(self, cluster: Cluster) -> Cost:
        """The price of a step."""
        tried = self.tried(cluster)
        return price(tried.priced, tried.split)


def decided(
    priced: Priced, parallelism: Parallelism, stages: Sequence[Sequence[str]], recomputed: tuple[int, ...]
) -> Tried:
    """As a candidate, with its stages by the names of their units."""
    by_name = unit_names(priced.folded.graph)
    units = tuple(tuple(by_name[name] for name in names) for names in stages)
    ways = {parallelism.recompute} - {NO_RECOMPUTE}
    sums, place = list[StageSums](), 0
    for own in units:
        idle = idle_stage(priced, place, tuple(ways))
        sums.append(stage_sums(priced, own, tuple(ways), parallelism.shards) if own else idle)
        place += len(own)
    split = Split(parallelism=parallelism, stages=tuple(sums), units=units, recomputed=recomputed)
    peak_bytes = RankMemory(priced, split).peak_bytes(split.recomputed)
    return Tried(priced=priced, split=split, peak_bytes=peak_bytes)
