"""``partitioner plan`` and ``partitioner clusters``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

from partitioner import Cluster, Plan, search
from partitioner.cluster import presets
from partitioner.errors import InputError
from partitioner.plan.derived_rows import Candidate
from tools.figures.card import looked_at, summary
from tools.models.entry_point import parse_settings
from tools.models.load import load
from tools.models.traced import traced, with_values
from tools.plan.edits_as_pins import edits, read_pins
from tools.plan.replan import planned
from tools.screen import output, seconds, size, status, table

EXAMPLES = """examples:
  partitioner plan examples/gpt.py:model --cluster local-cpu --global-batch 16 -o plan.json
  partitioner plan hf:llama --set num_hidden_layers=8 dtype=bfloat16 --cluster dgx-h100 --global-batch 64
  partitioner plan examples/gpt.py:model --cluster local-cpu --global-batch 16 --pin tp=2 --pin "blocks.*.mlp=replicate"
  partitioner plan --edit plan.json --pin schedule=1f1b -o other.json"""


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    plan = commands.add_parser(
        "plan",
        help="search the best plan for a model on a cluster",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("model", metavar="MODEL", nargs="?", help="file.py:function, hf:TYPE or hf:config.json")
    plan.add_argument("--edit", metavar="PLAN", help="solve a plan file again around its hand edits and more pins")
    plan.add_argument("--cluster", metavar="NAME", help="a preset (see clusters) or a .toml file")
    plan.add_argument("--nodes", type=int, metavar="N", help="default: 1")
    plan.add_argument("--devices", type=int, metavar="N", help="use N devices of one node")
    plan.add_argument("--global-batch", type=int, metavar="B", help="samples a step, all ranks together")
    plan.add_argument(
        "--seq", type=int, metavar="S", help="tokens a sample; default: what an hf: configuration allows, up to 8,192"
    )
    plan.add_argument("--set", action="append", default=[], nargs="+", metavar="k=v", help="model settings")
    plan.add_argument("--pin", action="append", default=[], metavar="tp=8", help="fix a decision or a layout")
    plan.add_argument("-o", "--output", metavar="FILE", help="write plan.json")
    plan.add_argument("--top", type=int, default=5, metavar="K", help="candidates to list")
    plan.add_argument("--plan-only", action="store_true", help="also propose what can't be executed yet (cp, ZeRO)")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON and nothing else")
    plan.set_defaults(action=plan_command)
    clusters = commands.add_parser("clusters", help="list the cluster presets", epilog="example: partitioner clusters")
    clusters.add_argument("--json", action="store_true")
    clusters.set_defaults(action=clusters_command)


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
    needed = {"MODEL": options.model, "--cluster": options.cluster, "--global-batch": options.global_batch}
    for name in (name for name, value in needed.items() if value is None):
        raise InputError(f"{name} is missing: give it, or a plan to --edit")
    cluster = Cluster.load(options.cluster, options.nodes or 1, options.devices)
    with status(f"loading {options.model}") as say:
        settings = parse_settings(word for words in options.set for word in words)
        source = with_values(load(options.model, settings, seq=options.seq, meta=True))
        model = {"entry": options.model, "settings": source.settings, "seq": source.seq}
        graph, pins = traced(source, say, global_batch=options.global_batch), read_pins(options.pin)
        return search(
            graph, cluster, options.global_batch, pins, model, say, plan_only=options.plan_only, keep=options.top
        )


def _edited(options: argparse.Namespace) -> Plan:
    """The model, cluster and batch of a plan file solved again around its own pins, its edits and more pins."""
    strange = [f"--{key}" for key in ("cluster", "nodes", "devices", "seq") if getattr(options, key) is not None]
    if options.model or options.set or strange:
        raise InputError(f"{(strange or ['MODEL'])[0]} comes from the plan that is edited: leave it out")
    before = Plan.load(options.edit)
    pins = {**before.pins, **edits(before), **read_pins(options.pin)}
    asked = replace(before, global_batch=options.global_batch or before.global_batch)
    plan = planned(asked, pins, plan_only=options.plan_only or bool(before.decisions.plan_only))
    return replace(plan, decisions=replace(plan.decisions, seed=before.decisions.seed)).stamped()


def candidates(title: str, listed: Sequence[Candidate], best: float) -> object:
    """Candidates beside the time of the chosen one."""
    rows = [
        [
            " ".join(f"{axis} {c.mesh[axis]}" for axis in c.order), str(c.micro_batch),
            c.schedule + (f" x{c.virtual}" if c.virtual > 1 else ""),
            c.recompute + (f", ZeRO {c.zero}" if c.zero else ""),
            seconds(c.step_seconds), f"{c.step_seconds / best:.2f}x", size(c.peak_bytes),
        ]
        for c in listed
    ]  # fmt: skip
    columns = ("mesh", "micro-batch", "schedule", "recompute", "step", "against best", "memory")
    return table(title, columns, rows)


def clusters_command(options: argparse.Namespace) -> int:
    """Every preset, one a row."""
    found = [Cluster.load(name) for name in presets()]
    if options.json:
        options.document(json.dumps([c.as_dict() for c in found], indent=1) + "\n")
        return 0
    rows = [
        [
            c.name, c.device.name, str(c.node_devices), size(c.device.memory_bytes),
            f"{max(c.device.flops_per_second.values()) / 1e12:g} TFLOP/s", size(c.node.speed) + "/s",
            size(c.network.speed) + "/s",
        ]
        for c in found
    ]  # fmt: skip
    columns = ("cluster", "device", "a node", "memory", "peak", "in a node", "across nodes")
    output().print(table("clusters", columns, rows))
    return 0
