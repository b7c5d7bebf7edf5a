"""Plans by published rules of thumb, for the model, cluster and batch of another plan, each priced as the framework
that people would run it with.

megatron    tensor parallel inside a node, as little as fits, then pipeline parallel, the rest data parallel; sequence
            parallel beside tp; no recompute where it fits without (Narayanan et al., 2021, takeaways 1 to 3;
            Korthikanti et al., 2022). Micro-batch and schedule are the best of those: an expert tries them out
fsdp        ZeRO 3 over all devices and nothing else (Rajbhandari et al., 2020; Zhao et al., 2023)
ddp         every device holds all (Li et al., 2020)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from partitioner import Plan
from partitioner.errors import DoesNotFit, InputError
from partitioner.searching.candidates import divisors
from partitioner.sharding.mesh_axes import CP, PP, TP
from partitioner.software import Software
from tools.compare.arguments import BASELINES
from tools.figures import figures
from tools.figures.columns import Column, infeasible, of_plan
from tools.plan.replan import attempted, planned, source_plan

Pins = dict[str, str | int]


def columns(first: Column, names: list[str]) -> list[Column]:
    """A column for each baseline that is asked for."""
    return [RULES[name](_for(source_plan(first), name)) for name in names]


def assumptions(names: Iterable[str]) -> Iterator[str]:
    """A line for each baseline: as whose step it is priced."""
    for name in names:
        yield f"{name}: {figures.software_words(Software.load(name))}"


def _for(plan: Plan, framework: str) -> Plan:
    """With what was measured of the machine itself, the share of its speed that is left and its host, kept."""
    own, found = Software.from_dict(plan.software), Software.load(framework)
    if own.measured:
        share, host = own.efficiency * found.efficiency, max(own.dispatch_seconds, found.dispatch_seconds)
        found = replace(found, efficiency=share, dispatch_seconds=host)
    precision = plan.decisions.precision.of_framework(found.gradients)
    return replace(plan, software=found.as_dict(), decisions=replace(plan.decisions, precision=precision))


def _megatron(plan: Plan) -> Column:
    reason = ""
    for pins in _by_rule(plan):
        try:
            return of_plan("megatron", planned(plan, pins))
        except (InputError, DoesNotFit) as error:
            reason = str(error)
    return infeasible("megatron", reason)


def _by_rule(plan: Plan) -> Iterator[Pins]:
    """Degrees in the order in which the rules try them, first without recompute."""
    node, devices, blocks = plan.cluster["node_devices"], plan.world, plan.model["blocks"]
    inside = [tp for tp in divisors(node) if devices % tp == 0]
    degrees = [(tp, 1) for tp in inside]
    degrees += [(inside[-1], pp) for pp in divisors(devices // inside[-1]) if 1 < pp <= blocks]
    for recompute in ("off", "full"):
        for tp, pp in degrees:
            beside: Pins = {"boundary": "sharded"} if tp > 1 else {}
            yield {TP: tp, PP: pp, CP: 1, "recompute": recompute, **beside}


def _fsdp(plan: Plan) -> Column:
    return attempted("fsdp", plan, {"zero": 3})


def _ddp(plan: Plan) -> Column:
    return attempted("ddp", plan, {})


RULES: dict[str, Callable[[Plan], Column]] = dict(zip(BASELINES, (_megatron, _fsdp, _ddp), strict=True))
