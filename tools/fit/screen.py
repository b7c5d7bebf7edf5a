"""What ``fit`` shows: what was taken, each number of devices that was tried, and the two plans side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from partitioner import Plan
from partitioner.hardware.device import Device
from partitioner.searching.assumed import assumed
from tools.figures import figures
from tools.figures.columns import HELD
from tools.fit.trials import Asked, Trial
from tools.screen import number, percent, seconds, size, table

KINDS = {**HELD, "activations": "activations kept", "transient": "work of the fullest moment"}
TIGHTEST, COMFORTABLE, FULL = "tightest", "comfortable", "fastest"


def taken(asked: Asked) -> Iterator[str]:
    """What the answer hangs on, a line each."""
    graph, cluster = asked.graph, asked.cluster
    model = assumed(graph)
    yield f"{asked.model['entry']}: {asked.parameters:,} parameters, {len(graph.blocks)} blocks"
    yield f"{cluster.name}: {cluster.device.name}, {cluster.node_devices} a node; {room_words(cluster.device)}"
    words = figures.precision_words(model, graph.precision, cluster.as_dict())
    yield ", ".join(filter(None, (words, figures.sample_words(model))))
    yield figures.software_words(cluster.software)
    yield batch_words(asked)
    yield from graph.notes


def room_words(device: Device) -> str:
    """What of a device's memory tensors are taken to fill, and what is left to others, as shares."""
    share, whole, left = device.allocator_share, size(device.memory_bytes), device.memory_bytes - device.room
    if share == 1:
        return f"{whole} of memory, all of it taken to be for tensors"
    return (
        f"{whole} of memory, {size(device.room)} ({percent(share)}) for tensors, {size(left)} ({percent(1 - share)}) "
        "for the allocator's gaps, NCCL and the driver together"
    )


def batch_words(asked: Asked) -> str:
    """The global batch, and why it was taken where nobody said one."""
    if asked.global_batch is not None:
        return f"global batch {asked.global_batch:,}"
    if asked.graph.inseparable:
        return f"global batch {asked.batch_on(1):,} (assumed: the example's, for samples can't be divided)"
    return (
        f"global batch {asked.samples} samples a device (assumed, so that there may be several micro-batches, as in "
        "larger batches; --global-batch says another)"
    )


def tried(trials: Sequence[Trial], unit: str) -> Table:
    """One number of devices a row."""
    rows = [
        [
            f"{row.devices:,}", f"{row.global_batch:,}", f"{'' if row.tightest else 'over '}{size(row.peak_bytes)}",
            verdict(row), *(_step(row.comfortable) if row.comfortable else ("", "")),
        ]
        for row in trials
    ]  # fmt: skip
    columns = ("devices", "batch", "tightest", "", COMFORTABLE, f"{unit}/s")
    return table("numbers of devices tried", columns, rows, words=("",))


def _step(plan: Plan) -> tuple[str, str]:
    return seconds(plan.cost.step_seconds), number(figures.rate(plan))


def verdict(trial: Trial) -> str:
    """Whether it fits, or what is missing on a device."""
    if trial.reason:
        return f"no plan: {trial.reason}"
    if trial.fits:
        return "fits, barely" if trial.is_full else "fits"
    return f"misses {'' if trial.tightest else 'over '}{size(trial.missing_bytes)}"


def plans(trial: Trial) -> Table:
    """The plans of one number of devices side by side; memory by kind is of the fullest pipeline rank."""
    found = by_name(trial)
    rows = [[name, *(words(plan) for plan in found.values())] for name, words in _ROWS.items()]
    held = [figures.rank_memory(plan)[figures.worst_rank(plan)] for plan in found.values()]
    rows += [["memory at its fullest", *(size(plan.cost.peak_bytes) for plan in found.values())]]
    rows += [[f"  {words}", *(size(row[kind]) for row in held)] for kind, words in KINDS.items()]
    rows += [[f"left of {size(trial.room)}", *(_left(trial.room, plan) for plan in found.values())]]
    title = "the plans" if len(found) > 1 else "the tightest plan"
    return table(f"{title} on {devices(trial)}", ("", *found), rows)


def devices(trial: Trial) -> str:
    """How many."""
    return f"{trial.devices:,} {'device' if trial.devices == 1 else 'devices'}"


def by_name(trial: Trial) -> dict[str, Plan]:
    """The tightest plan, and the other where there is one."""
    found = {TIGHTEST: trial.tightest, FULL if trial.is_full else COMFORTABLE: trial.comfortable}
    return {name: plan for name, plan in found.items() if plan is not None}


def _left(room: float, plan: Plan) -> str:
    left = room - plan.cost.peak_bytes
    return f"{size(left)} ({percent(left / room)})" if left >= 0 else f"misses {size(-left)}"


_ROWS = {
    "mesh": lambda plan: figures.mesh_words(plan.parallelism, ", "),
    "micro-batch": lambda plan: f"{plan.parallelism.micro_batches} of {plan.parallelism.micro_batch}",
    "schedule": lambda plan: figures.schedule_label(plan.parallelism),
    "recompute": lambda plan: figures.recompute_words(plan.decisions).removeprefix("recompute "),
    "ZeRO": lambda plan: figures.zero_label(plan.parallelism).removeprefix(", ZeRO ") or "0",
    "step": lambda plan: seconds(plan.cost.step_seconds),
    "rate": lambda plan: f"{number(figures.rate(plan))} {figures.unit(plan.model)}/s",
    "MFU": lambda plan: percent(figures.mfu(plan)),
}
