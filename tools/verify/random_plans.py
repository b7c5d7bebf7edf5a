"""Plans drawn at random: meshes, schedules, micro-batches, recompute, ZeRO, and layouts of some parameters.

The same seed draws the same plans. What can't be planned (a layout that does not divide, a schedule that wants other
micro-batches) is drawn again, and told.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from partitioner import Graph, Plan, search
from partitioner.errors import InputError
from partitioner.plan.executed import EXECUTED
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.schedule.tables import SCHEDULES
from partitioner.sharding.mesh_axes import AXES, DP, PP, TP
from tools.verify.plan_families import cluster

DRAWS = 50  # for each plan that is asked for
LAYOUTS = ("replicate", "shard:0", "shard:1")
PINNED = 3  # parameters of one plan, at most
Pins = dict[str, str | int]


class Drawn(NamedTuple):
    """Plans, each with its number and what was drawn; and why the draws between them have none."""

    plans: list[tuple[str, Plan]]
    refused: list[str]


def random_plans(graph: Graph, ranks: int, global_batch: int, count: int, seed: int) -> Drawn:
    """``count`` plans, no two alike; raises InputError where not so many are found."""
    generator, found, seen = random.Random(seed), Drawn([], []), set[tuple[tuple[str, str | int], ...]]()
    for _ in range(DRAWS * count):
        if len(found.plans) == count:
            break
        pins = draw(generator, graph, ranks, global_batch)
        key = tuple(sorted(pins.items()))
        if key in seen:
            continue
        seen.add(key)
        try:
            plan = search(graph, cluster(ranks), global_batch, pins)
            found.plans.append((f"{len(found.plans)}: {_words(plan, pins)}", plan))
        except InputError as error:
            found.refused.append(f"{' '.join(f'{name}={value}' for name, value in pins.items())}: {error}")
    if len(found.plans) == count:
        return found
    raise InputError(f"only {len(found.plans)} of {count} random plans were found on {ranks} ranks: ask for fewer")


def draw(generator: random.Random, graph: Graph, ranks: int, global_batch: int) -> Pins:
    """Pins of one plan, which may contradict each other."""
    meshes = [(pp, dp, ranks // (pp * dp)) for pp in _divisors(ranks) for dp in _divisors(ranks // pp)]
    pp, dp, tp = generator.choice([mesh for mesh in meshes if mesh[0] <= len(graph.blocks)])
    whole = graph.inseparable is not None
    pins: Pins = {PP: pp, DP: dp, TP: tp, "recompute": generator.choice(EXECUTED["recompute"].executed)}
    pins["micro_batch"] = global_batch if whole else generator.choice(_divisors(max(1, global_batch // dp)))
    if pp > 1:
        row = generator.choice([row for row in SCHEDULES.values() if row.executed])
        pins |= {"schedule": row.name, "virtual": row.fewest_stages}
    pins["zero"] = generator.choice(EXECUTED["zero"].executed) if dp > 1 else 0
    if pins["zero"] and generator.random() < 0.5:
        pins["zero_group"] = generator.choice(_divisors(dp)[1:])
    if (sizes := _divisors(tp)[1:-1]) and generator.random() < 0.5:
        pins[AXES[TP].parts[0]] = generator.choice(sizes)
    if tp > 1:
        pins["boundary"] = generator.choice(("whole", "sharded"))
        names = sorted(name for name, info in graph.parameters.items() if len(info.shape) == 2)
        for name in generator.sample(names, min(generator.randrange(PINNED + 1), len(names))):
            pins[name] = generator.choice(LAYOUTS)
    return pins


def _words(plan: Plan, pins: Pins) -> str:
    """Of a drawn plan, but for its mesh."""
    own, layouts = plan.parallelism, sum(value in LAYOUTS for value in pins.values())
    words = [f"micro-batch {own.micro_batch}"]
    words += [f"{axis} {ranks}" for axis, ranks in own.refined.items()]
    words += [own.schedule] if own.mesh[PP] > 1 else []
    words += [f"recompute {own.recompute}"] if own.recompute != NO_RECOMPUTE else []
    words += [f"ZeRO {own.zero} over {own.shards}"] if own.zero else []
    words += [f"{layouts} layouts pinned"] if layouts else []
    return ", ".join(words)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
