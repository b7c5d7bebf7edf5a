"""``partitioner plan``: search, show the card and the candidates, write the file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from partitioner import Cluster, Plan, search
from partitioner.errors import InputError
from partitioner.plan.derived_rows import Candidate
from partitioner.software import OWN
from tools.figures import figures
from tools.figures.card import looked_at, summary
from tools.models import precision_option
from tools.models.traced import asked_graph
from tools.plan.answers_plan import answers_plan
from tools.plan.arguments import GOALS, THROUGHPUT
from tools.plan.edits_as_pins import edits, read_pins
from tools.plan.replan import planned
from tools.screen import output, seconds, size, status, table


def plan_command(options: argparse.Namespace) -> int:
    """Trace on meta, search, show the card and the candidates, write the file."""
    counts = (options.global_batch, options.nodes, options.top, options.devices)
    if any(count is not None and count < 1 for count in counts):
        raise InputError("--global-batch, --nodes, --devices and --top must be positive")
    plan = _edited(options) if options.edit else _searched(options)
    if options.output:
        plan.save(options.output)
    if options.json:
        options.document(plan.to_json())
        return 0
    console = output()
    console.print(summary(plan))
    console.print(candidates("candidates", plan.candidates[: options.top], plan.cost.step_seconds))
    console.print(candidates("less memory, more time", plan.front, plan.cost.step_seconds))
    console.print(looked_at(plan))
    if options.output:
        console.print(f"written to {options.output}")
    return 0


def _searched(options: argparse.Namespace) -> Plan:
    """For MODEL, as the options ask."""
    batch = options.global_batch or options.framework == THROUGHPUT  # which looks for it
    needed = {"MODEL": options.model, "--cluster": options.cluster, "--global-batch": batch or None}
    for name in (name for name, value in needed.items() if value is None):
        raise InputError(f"{name} is missing: give it, or a plan to --edit")
    if options.framework in GOALS:
        return answers_plan(options)
    if given := [name for name in ("prompt", "answer", "chunk") if getattr(options, name) is not None]:
        raise InputError(f"--{given[0]} is of plans for answers: add --for {' or --for '.join(GOALS)}")
    cluster = Cluster.load(options.cluster, options.nodes or 1, options.devices, options.framework or OWN)
    with status(f"loading {options.model}") as say:
        graph, model = asked_graph(options, cluster, say)
        pins = read_pins(options.pin)
        return search(
            graph, cluster, options.global_batch, pins, model, say, plan_only=options.plan_only, keep=options.top
        )


def _edited(options: argparse.Namespace) -> Plan:
    """The model, cluster and batch of a plan file solved again around its own pins, its edits and more pins."""
    asked = {"cluster": options.cluster, "nodes": options.nodes, "devices": options.devices, "seq": options.seq}
    strange = [f"--{key}" for key, value in {**asked, "for": options.framework}.items() if value is not None]
    if options.model or options.set or strange:
        raise InputError(f"{(strange or ['MODEL'])[0]} comes from the plan that is edited: leave it out")
    before = Plan.load(options.edit)
    pins = {**before.pins, **edits(before), **read_pins(options.pin)}
    asked = replace(before, global_batch=options.global_batch or before.global_batch)
    own = precision_option.asked(options, before.decisions.precision)
    asked = replace(asked, decisions=replace(before.decisions, precision=own))
    plan = planned(asked, pins, plan_only=options.plan_only or bool(before.decisions.plan_only))
    return replace(plan, decisions=replace(plan.decisions, seed=before.decisions.seed)).stamped()


def candidates(title: str, listed: Sequence[Candidate], best: float) -> object:
    """Candidates beside the time of the chosen one."""
    rows = [
        [
            figures.mesh_words(c.parallelism, " "), str(c.parallelism.micro_batch),
            figures.schedule_label(c.parallelism), figures.recompute_label(c.parallelism),
            seconds(c.step_seconds), f"{c.step_seconds / best:.2f}x", size(c.peak_bytes),
        ]
        for c in listed
    ]  # fmt: skip
    columns = ("mesh", "micro-batch", "schedule", "recompute", "step", "against best", "memory")
    return table(title, columns, rows)
