"""What a plan says in a few lines: the mesh, the step's parts, memory by stage."""

from __future__ import annotations

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from partitioner import Cluster, Plan
from partitioner.plan import Decisions
from tools.gemms import kernel_words
from tools.screen import seconds, size, table

PARTS = (
    ("compute", "compute_seconds"),
    ("tensor-parallel communication", "communication_seconds"),
    ("pipeline bubble and waiting", "bubble_seconds"),
    ("gradient sync, exposed", "sync_seconds"),
    ("optimizer", "optimizer_seconds"),
)


def summary(plan: Plan) -> Group:
    """A card, then the parts of a step, then the stages."""
    return Group(_card(plan), _parts(plan), _stages(plan))


def mesh_words(plan: Plan) -> str:
    """``pp 2 x dp 1 x tp 2``."""
    mesh = plan.decisions.mesh
    return " x ".join(f"{axis} {mesh[axis]}" for axis in plan.decisions.order)


def mfu(plan: Plan) -> float:
    """Model FLOPs over peak FLOPs of all devices in the step's time."""
    peak = max(plan.cluster["device"]["flops_per_second"].values())
    return plan.cost.flops / (plan.cost.step_seconds * plan.world * peak)


def recompute_words(decisions: Decisions) -> str:
    """``recompute off``, or of how many blocks in each stage."""
    counts = decisions.recomputed
    if not any(counts):
        return "recompute off"
    many = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    return f"recompute {decisions.recompute} of {many} blocks a stage"


def targets_per_second(plan: Plan) -> float:
    """A language model's tokens a second."""
    return plan.global_batch * plan.model["targets"] / plan.cost.step_seconds


def dollars(plan: Plan) -> float | None:
    """The price of a billion targets; None where the cluster has none."""
    rate = plan.cluster["device"]["dollars_per_hour"]
    return None if rate is None else rate * plan.world * 1e9 / targets_per_second(plan) / 3600


def kilowatt_hours(plan: Plan) -> float | None:
    """The devices' energy for a billion targets at their full power; None where the cluster does not give it."""
    power = plan.cluster["device"]["watts"]
    return None if power is None else power * plan.world * 1e9 / targets_per_second(plan) / 3.6e6


def _card(plan: Plan) -> Panel:
    d = plan.decisions
    devices = plan.cluster["nodes"] * plan.cluster["node_devices"]
    lines = [
        f"{plan.model.get('entry', 'a model')}: {plan.model['parameters']:,} parameters, {plan.model['blocks']} blocks",
        f"{plan.cluster['name']}: {devices} x {plan.cluster['device']['name']}",
        f"mesh {mesh_words(plan)}, {d.schedule}" + (f" with {d.virtual} virtual stages" if d.virtual > 1 else ""),
        f"global batch {plan.global_batch} = {d.mesh['dp']} dp x {d.micro_batches} micro-batches of {d.micro_batch}, "
        f"{recompute_words(d)}{f', ZeRO {d.zero}' if d.zero else ''}",
        f"step {seconds(plan.cost.step_seconds)}, {targets_per_second(plan):,.4g} tokens/s, "
        f"peak memory {size(plan.cost.peak_bytes)} of {size(Cluster.from_dict(plan.cluster).device.room)}",
        *_price(plan),
        kernel_words(plan),
        *([f"to look at only: {', '.join(d.plan_only)} can't be executed yet"] if d.plan_only else []),
        *plan.notes,
    ]
    if plan.stale:
        lines.append("STALE: the decisions were edited after the rest was derived from them; plan again")
    return Panel(Text("\n".join(lines)), title="plan", expand=False)


def _price(plan: Plan) -> list[str]:
    rows = ((dollars(plan), "${:,.4g}"), (kilowatt_hours(plan), "{:,.4g} kWh"))
    words = [form.format(value) for value, form in rows if value is not None]
    return [f"a billion tokens: {', '.join(words)}"] if words else []


def _parts(plan: Plan) -> object:
    whole = plan.cost.step_seconds
    rows = [
        [name, seconds(value), f"{100 * value / whole:.1f} %"]
        for name, value in ((name, getattr(plan.cost, key)) for name, key in PARTS)
    ]
    rows.append(["step", seconds(whole), "100 %"])
    return table("where the time goes (predicted)", ("part", "seconds", "share"), rows)


def _stages(plan: Plan) -> object:
    rows = [
        [
            str(n), f"{units[0]} .. {units[-1]}" if len(units) > 1 else units[0], str(len(units)),
            seconds(cost.forward_seconds), seconds(cost.backward_seconds), size(cost.state_bytes),
            size(cost.activation_bytes),
        ]
        for n, (units, cost) in enumerate(zip(plan.decisions.stages, plan.cost.stages, strict=True))
    ]  # fmt: skip
    columns = ("stage", "units", "count", "forward", "backward", "state", "activations")
    return table("stages (one micro-batch)", columns, rows)
