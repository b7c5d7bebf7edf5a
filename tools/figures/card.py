"""What a plan says at a glance: a card of its figures, where the step's time goes, what each pipeline rank holds."""

from __future__ import annotations

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from partitioner import Cluster, Plan
from partitioner.errors import InputError
from partitioner.sharding.mesh_axes import DP, PP
from tools.figures import figures
from tools.figures.gemm_words import kernel_words
from tools.screen import number, percent, seconds, size, table

BAR, MEMORY_BAR = 32, 48  # columns
_FEW_BITS = "what is held and sent is counted in the types of the model, not in the few bits of its products"
BLOCKS = dict(zip(figures.MEMORY, "█▓▒░·", strict=True))  # told apart without colours
COLOURS = dict(zip(figures.MEMORY, ("blue", "cyan", "magenta", "green", "yellow"), strict=True))


def summary(plan: Plan) -> Group:
    """The card, the parts of a step, memory by pipeline rank."""
    return Group(_card(plan), _parts(plan), _memory(plan))


def _card(plan: Plan) -> Panel:
    devices = plan.cluster["nodes"] * plan.cluster["node_devices"]
    lines = [
        f"{plan.model.get('entry', 'a model')}: {plan.model['parameters']:,} parameters, {plan.model['blocks']} blocks",
        f"{plan.cluster['name']}: {devices:,} x {plan.cluster['device']['name']}",
        f"mesh {figures.mesh_words(plan.parallelism)}, {figures.schedule_words(plan.parallelism)}", *facts(plan),
        *([stale_words(plan)] if plan.stale else []),
    ]  # fmt: skip
    rows, grid = headline(plan), Table.grid(padding=(0, 3, 0, 0))
    for left, right in zip(rows[::2], [*rows[1::2], ("", "")][: len(rows[::2])], strict=True):
        grid.add_row(left[0], Text(left[1], "bold"), right[0], Text(right[1], "bold"))
    return Panel(Group(Text("\n".join(lines)), "", grid), title="plan", expand=False)


def facts(plan: Plan) -> list[str]:
    """What is assumed of the model, how the batch is cut, what is recomputed, which kernels run, what one must know."""
    d, own = plan.decisions, plan.parallelism
    computed = figures.precision_words(plan.model, d.precision, plan.cluster)
    return [
        ", ".join(filter(None, (computed, figures.sample_words(plan.model)))),
        f"global batch {plan.global_batch:,} = {own.mesh[DP]} dp x {own.micro_batches} micro-batches of "
        f"{own.micro_batch}, {figures.recompute_words(d)}{figures.zero_label(own)}",
        *([_FEW_BITS] if d.precision.products else []), figures.software_words(plan.machine.software),
        kernel_words(plan),
        *([f"to look at only: {', '.join(d.plan_only)} can't be executed yet"] if d.plan_only else []),
        *plan.notes,
    ]


def headline(plan: Plan) -> list[tuple[str, str]]:
    """The figures that people ask for first, in words."""
    whole, cost = plan.cost.step_seconds, plan.cost
    room = Cluster.from_dict(plan.cluster).device.room
    unit, money, energy = figures.unit(plan.model), figures.dollars(plan), figures.kilowatt_hours(plan)
    return [
        ("step", seconds(whole)), (f"{unit}/s", number(figures.rate(plan))),
        ("MFU", percent(figures.mfu(plan))), ("memory", f"{size(cost.peak_bytes)} of {size(room)}"),
        ("bubble", percent(cost.bubble_seconds / whole)),
        ("exposed communication", percent(figures.exposed(plan) / whole)),
        *([] if money is None else [(f"a billion {unit}", f"${number(money)}")]),
        *([] if energy is None else [("energy for them", f"{number(energy)} kWh")]),
    ]  # fmt: skip


def check_readable(plan: Plan) -> None:
    """Raise InputError where edits have left figures that can't be set beside the decisions."""
    d, units = plan.decisions, [name for row in plan.blocks for name in row.units]
    named = sorted(name for stage in d.stages for name in stage)
    cut = len(d.stages) == len(plan.cost.stages) == plan.parallelism.stage_count
    reads = set(plan.reads) == set(units) and all(m in plan.reads for rows in plan.reads.values() for m, _ in rows)
    if not cut or named != sorted(units) or not reads:
        words = "the stages are not those of the plan's blocks: plan again"
        raise InputError(stale_words(plan) if plan.stale else words)


def stale_words(plan: Plan) -> str:
    """What was edited, and the mend."""
    return f"STALE: {', '.join(plan.edited)} edited since it was priced; partitioner plan --edit PLAN prices it again"


def _parts(plan: Plan) -> Table:
    whole = plan.cost.step_seconds
    found = figures.parts(plan)
    rows = [
        [name, seconds(value), percent(value / whole), "█" * round(BAR * value / whole)]
        for name, value in [*found.items(), ("step", sum(found.values()))]
    ]
    return table("where the time goes (predicted)", ("part", "seconds", "share", ""), rows, words=("",))


def _memory(plan: Plan) -> Table:
    """Neighbouring pipeline ranks that read the same stand on one line."""
    own, room = plan.parallelism.rank_stages, Cluster.from_dict(plan.cluster).device.room
    grouped: list[tuple[int, int, dict[str, float]]] = []
    for p, held in enumerate(figures.rank_memory(plan)):
        if grouped and _alike(grouped[-1][2], held) and len(own[p]) == len(own[grouped[-1][0]]):
            grouped[-1] = (grouped[-1][0], p, held)
        else:
            grouped.append((p, p, held))
    legend = "  ".join(f"{BLOCKS[kind]} {kind}" for kind in figures.MEMORY)
    made = table("memory a rank", (PP, "stages", "bytes", f"of {size(room)}", legend), [], words=("stages", legend))
    most = max(sum(held.values()) for _, _, held in grouped)
    for first, last, held in grouped:
        names = str(first) if first == last else f"{first} to {last}"
        stages = ", ".join(map(str, own[first])) if first == last else f"{len(own[first])} each"
        whole = sum(held.values())
        made.add_row(names, stages, size(whole), percent(whole / room), memory_bar(held, most))
    return made


def _alike(a: dict[str, float], b: dict[str, float]) -> bool:
    return all(size(a[kind]) == size(b[kind]) for kind in figures.MEMORY)


def memory_bar(held: dict[str, float], most: float) -> Text:
    """Bytes by kind, all columns for ``most``."""
    bar = Text()
    for kind, many in held.items():
        bar.append(BLOCKS[kind] * round(MEMORY_BAR * many / most), COLOURS[kind])
    return bar


def looked_at(plan: Plan) -> str:
    """How many candidates there were and why the others are out."""
    n = plan.searched
    return (
        f"{n['candidates']} candidates: {n['over_memory']} need more memory than a device has, "
        f"{n['walked']} were priced action by action, {n['beaten_by_bound']} cannot beat those"
    )
