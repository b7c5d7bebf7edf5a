"""A plan of a model's other graph under which its state lies as it does: for batches of another length, or evaluation.

plan --> mesh, stages, layouts of parameters --fixed--> the cheapest layouts of everything else --> Plan
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import fx

from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_units
from partitioner.errors import InputError
from partitioner.gc_pause import uncollected
from partitioner.graph.graph import Graph, unit_names
from partitioner.graph.nodes import is_parameter, operands
from partitioner.graph.resize_batch import resize
from partitioner.graph.step_inputs import is_kept
from partitioner.graph.tied_blocks import Folded, Value, fold
from partitioner.plan.plan import Plan
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.searching.reprice import decided
from partitioner.searching.write_plan import ALONE, plan_of
from partitioner.sharding.layout import Placement, layout_word, parse_layout
from partitioner.sharding.mesh_axes import DP
from partitioner.solve.axis_by_axis import solve_axes
from partitioner.solve.choices import Allowed, NoLayout
from partitioner.step.step_seconds import price


@uncollected()
def with_state_of(
    plan: Plan, graph: Graph, stages: Mapping[str, Sequence[int]], micro_batch: int, trains: bool = True,
    micro_batches: int | None = None,
) -> Plan:
    """A Plan of ``graph``, of the same parameters as ``plan``'s, in micro-batches of ``micro_batch`` samples.

    Parameters lie as under ``plan``, and are read in the ``stages`` that read them there, by name; those that it does
    not have lie as is cheapest. A data rank has ``micro_batches``, None: no more samples than there. Where nothing
    ``trains`` nothing is recomputed. Raises InputError where the graph reads parameters elsewhere, or in a way that
    their layouts don't allow.
    """
    own, decisions = plan.parallelism, plan.decisions
    many = micro_batches or own.micro_batch * own.micro_batches // micro_batch
    again = (own.recompute, decisions.recomputed) if trains else (NO_RECOMPUTE, (0,) * len(decisions.stages))
    parallelism = replace(own, micro_batch=micro_batch, micro_batches=many, recompute=again[0])
    folded, cluster = fold(resize(graph, micro_batch)), plan.machine
    units = _cut(plan, folded.graph, stages)
    if trains and not all(units):
        raise InputError(f"nothing of the model is left in stage {units.index([])} of the plan")
    setting = Setting.of(folded, cluster, own.mesh, own.refined)
    try:
        solution = solve_axes(setting, cluster, [many], lambda axis: _as_under(plan, folded, axis))[many]
    except NoLayout as error:
        raise InputError(_divided_otherwise(plan, folded, setting, many)) from error
    tried = decided(price_units(setting, solution, cluster), parallelism, units, again[1])
    samples = parallelism.mesh[DP] * many * micro_batch
    found = plan_of([(tried, price(tried.priced, tried.split))], [], ALONE, samples, {}, plan.model)
    return replace(found, decisions=replace(found.decisions, seed=decisions.seed)).stamped()


def _divided_otherwise(plan: Plan, folded: Folded, setting: Setting, many: int) -> str:
    """Names the first parameter without whose layout there were one of all ops."""
    for node in dict.fromkeys(folded.parameter.values()):
        name = node.meta["source"]
        if name not in plan.parameters or is_kept(name):
            continue
        try:
            solve_axes(setting, plan.machine, [many], lambda axis, name=name: _as_under(plan, folded, axis, name))
        except NoLayout:
            continue
        lies = layout_word(parse_layout(plan.parameters[name], len(setting.axes)))
        return f"the plan divides {name} as {lies}, which can't be read so here: plan with the pin {name}=replicate"
    return "no layout of the model's ops leaves its parameters as the plan divides them"


def _as_under(plan: Plan, folded: Folded, axis: str, but: str = "") -> Allowed:
    """Whether a parameter lies along an axis as under the plan; one may lie otherwise."""
    axes = plan.parallelism.axes
    place = [name for name, _ in axes].index(axis)
    representatives = dict.fromkeys(folded.parameter.values())
    names = {n: n.meta["source"] for n in representatives if n.meta["source"] != but}
    known = {n: plan.parameters[name] for n, name in names.items() if name in plan.parameters}
    rows = {n: parse_layout(words, len(axes)) for n, words in known.items()}

    def allowed(value: Value, placement: Placement) -> bool:
        return not isinstance(value, fx.Node) or value not in rows or rows[value][place] == placement

    return allowed


def _cut(plan: Plan, graph: Graph, stages: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """The units of each stage, of some none: one that the plan names where it stands there, others with what they read,
    or with the unit before."""
    known = {name: n for n, names in enumerate(plan.decisions.stages) for name in names}
    found: list[list[str]] = [[] for _ in plan.decisions.stages]
    here = 0
    for name, unit in unit_names(graph).items():
        read = {o for node in unit.nodes for o in operands(graph.nodes[node]) if is_parameter(o)}
        names = {graph.parameters[o.meta["source"]].names[0] for o in read}
        owners = [set(stages[name]) for name in names if name in stages]
        common = set[int].intersection(*owners) if owners else set[int]()
        if owners and not common:
            raise InputError(f"{name} reads parameters that no stage of the plan has together")
        named = {known[name]} if name in known else set[int]()
        admitted = (named & common if owners else named) or common or {here}
        if not (ahead := [n for n in sorted(admitted) if n >= here]):
            raise InputError(f"{name} reads parameters of an earlier stage of the plan than what stands before it")
        here = ahead[0]
        found[here].append(name)
    return found
