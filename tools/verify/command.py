"""``partitioner verify``: families of plans, or one plan, on local gloo ranks against the eager module."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from partitioner import Graph, Plan, lower, search
from partitioner.errors import InputError
from partitioner.plan.check import check_trains
from partitioner.precision import OWN
from partitioner.sharding.layout import Shard, parse_layout
from partitioner.sharding.mesh_axes import TP
from runtime.ranks import launch
from runtime.verify.captured_graph import Captured, captured
from tools.models import precision_option
from tools.models.entry_point import parse_settings
from tools.models.load import Source
from tools.models.load_planned import of_the_plan
from tools.screen import output, status, table
from tools.verify.dry_run import dry_run
from tools.verify.memory_needed import free_bytes, refuse_too_large
from tools.verify.plan_families import Family, cluster, families, left_out, possible
from tools.verify.random_plans import random_plans
from tools.verify.subject import EXAMPLE, Subject, subject_of

SHARE = 0.95
EMPTY = 0.5  # share of gradients that are exactly 0: beyond it, equality would say little
LIMIT_SECONDS = 1800.0
Asked = tuple[Subject, list[tuple[str, Plan]], list[str]]  # plans by name, and what is said of those left out


@dataclass(frozen=True)
class Verified:
    """One plan's result; what its tp layout divides of parameters and FLOPs, and ``least`` of both asked.

    ``limit`` is the relative error that is a difference, ``empty`` the share of gradients that are exactly zero.
    ``real``: what is wrong in the data types of the plan's precision, "" for nothing, and the largest difference there.
    """

    name: str
    mesh: str
    ranks: int
    tp: int
    least: float
    loss: float
    gradient: float
    norm: float
    parameter: float
    worst: str
    parameters_divided: float
    flops_divided: float
    zero: tuple[str, ...]
    empty: float
    limit: float
    first: str
    unforeseen: str
    real: str
    real_error: float

    @property
    def error(self) -> float:
        """The largest relative error."""
        return max(self.loss, self.gradient, self.norm, self.parameter)

    @property
    def passed(self) -> bool:
        """Equal within the limit, as much divided as was asked, and nothing sent but what was predicted."""
        return self.verdict == "equal"

    @property
    def verdict(self) -> str:
        """``equal``, or what is wrong."""
        if not self.error <= self.limit:
            return f"DIFFERS: {self.worst}"
        if self.real:
            return f"DIFFERS: {self.real}"
        if self.unforeseen:
            return f"SENDS WHAT IS NOT PREDICTED: {self.unforeseen}"
        if self.empty > EMPTY:
            return f"SAYS NOTHING: {100 * self.empty:.0f} % of gradients are exactly 0"
        divided = min(self.parameters_divided, self.flops_divided)
        return "equal" if divided >= self.least else f"DIVIDES LESS THAN {100 * self.least:g} %"


@dataclass(frozen=True)
class Found:
    """All results; ``remarks`` say what was done and not."""

    subject: Subject
    traced: Captured
    rows: list[Verified]
    remarks: list[str]

    @property
    def passed(self) -> bool:
        """Whether all is equal."""
        return self.traced.passed and all(row.passed for row in self.rows)


def verify_command(options: argparse.Namespace) -> int:
    """Exit status 0 when all is equal, 1 when something differs."""
    given = options.what.endswith(".json") and ":" not in options.what
    if options.dry_run:
        if not given:
            raise InputError(f"--dry-run takes a plan.json, not {options.what}: make one with partitioner plan")
        return dry_run(Plan.load(options.what), options)
    if given and options.random is not None:
        raise InputError(f"--random draws plans of a MODEL, and {options.what} is a plan: drop one of them")
    with status("loading and tracing") as say:
        subject, wanted, without = _of_plan(Plan.load(options.what)) if given else _of_model(options)
        if not options.json:
            output().print(str(subject.source))
        for _, plan in wanted:
            lower(subject.traced_in(plan.decisions.precision), plan)  # another model's is refused before ranks start
        say("comparing the graph with the eager module")
        traced = captured(subject.module, subject.graph, subject.batch)
        say(f"running {len(wanted)} plans")
        rows, said = run_plans(subject, wanted, 0.0 if given or options.random is not None else SHARE)
    remarks = [*subject.remarks(), *filter(None, (said, "" if given else left_out(subject.graph))), *without]
    found = Found(subject, traced, rows, remarks)
    if options.json:
        options.document(_document(found))
    else:
        _print(found)
    return 0 if found.passed else 1


def _of_plan(plan: Plan) -> Asked:
    check_trains(plan)
    model = plan.model
    if not model.get("entry"):
        raise InputError("the plan names no model to load: make it with partitioner plan MODEL")
    refuse_too_large(plan, free_bytes())
    sys.stderr.write(f"importing {model['entry']}\n")
    settings: Mapping[str, object] = model["settings"]
    own = plan.decisions.precision
    with of_the_plan():
        subject = subject_of(str(model["entry"]), settings, model.get("seq"), EXAMPLE, plan.global_batch, precision=own)
    return subject, [("the plan", plan)], []


def _of_model(options: argparse.Namespace) -> Asked:
    if options.ranks < 2:
        raise InputError(f"verify needs at least 2 ranks, not {options.ranks}")
    settings = parse_settings(word for words in options.set for word in words)
    sys.stderr.write(f"importing {options.what}\n")
    samples = 2 * options.ranks
    own = precision_option.asked(options, OWN)
    subject = subject_of(options.what, settings, options.seq, EXAMPLE, samples, shrink=True, precision=own)
    if options.random is not None:
        drawn = random_plans(subject.graph, options.ranks, samples, options.random, options.seed)
        said = f"{len(drawn.plans)} plans drawn with seed {options.seed}, {len(drawn.refused)} draws have no plan"
        return subject, drawn.plans, [said, *(f"no plan: {words}" for words in drawn.refused)]
    tried = [f if own == OWN else replace(f, precision=own) for f in families(subject.graph, options.ranks, samples)]
    rows, said = possible(tried, subject.traced_in, samples)
    return subject, [(f.name, family_plan(graph, f, options.ranks, samples)) for f, graph in rows], said


def family_plan(graph: Graph, family: Family, ranks: int, global_batch: int) -> Plan:
    """The best plan under the family's pins; the search must not leave them."""
    return search(graph, cluster(ranks), global_batch, family.pins)


def run_plans(subject: Subject, plans: list[tuple[str, Plan]], least: float) -> tuple[list[Verified], str]:
    """All plans of one world size in one launch of that many ranks, and a remark on what they were compared with.

    ``least`` is to be divided where tp is 2.
    """
    rows: list[Verified] = []
    remark = ""
    for ranks in sorted({plan.world for _, plan in plans}):
        chosen = [(name, plan) for name, plan in plans if plan.world == ranks]
        with tempfile.TemporaryDirectory() as folder:
            result = _launch(subject.source, chosen, ranks, Path(folder))
        found, remark = result["rows"], result["remark"]
        rows += [_row(*named, subject, least, row) for named, row in zip(chosen, found, strict=True)]
    return rows, remark


def _launch(source: Source, plans: list[tuple[str, Plan]], ranks: int, folder: Path) -> dict[str, Any]:
    for n, (_, plan) in enumerate(plans):
        plan.save(folder / f"{n}.json")
    model = {
        "spec": source.spec, "settings": source.settings, "seq": source.seq, "batch": source.batch_size,
        "samples": plans[0][1].global_batch,
    }  # fmt: skip
    (folder / "model").write_text(json.dumps(model))
    result = launch.local_module("tools.verify.rank", [str(folder), str(len(plans))], ranks, LIMIT_SECONDS)
    if result.failure is not None:
        sys.stderr.write(result.stderr[result.failure.rank or 0])
        raise InputError(f"verify stopped: {result.failure}")
    return json.loads((folder / "result").read_text())


def _row(name: str, plan: Plan, subject: Subject, least: float, result: Mapping[str, object]) -> Verified:
    mesh, graph = plan.parallelism.mesh, subject.traced_in(plan.decisions.precision)
    words = " ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1)
    least = least if mesh[TP] == 2 else 0.0
    shares = {"parameters_divided": divided_parameters(plan, graph), "flops_divided": divided_flops(plan, graph)}
    return Verified(name, words, plan.world, mesh[TP], least, **shares, **result)  # type: ignore[arg-type]


def divided_parameters(plan: Plan, graph: Graph) -> float:
    """The share of parameter elements whose layout is a shard."""
    sizes = {name: math.prod(info.shape) for name, info in graph.parameters.items()}
    parts = [sizes[n] for n, word in plan.parameters.items() if is_divided(word)]
    return sum(parts) / sum(sizes[n] for n in plan.parameters)


def is_divided(words: object) -> bool:
    """Whether ranks hold parts of what lies so."""
    return any(isinstance(placement, Shard) for placement in parse_layout(words))


def divided_flops(plan: Plan, graph: Graph) -> float:
    """The share of forward FLOPs of ops that run on a shard."""
    flops: dict[str, float] = {name: node["forward_flops"] for name, node in graph.digraph.nodes.items()}
    rows = [(len(block.units) * flops[op.name], (*op.operands, op.result)) for block in plan.blocks for op in block.ops]
    parts = [n for n, words in rows if any(map(is_divided, words))]
    return sum(parts) / sum(n for n, _ in rows)


def _print(found: Found) -> None:
    cells = [
        [
            row.name, row.mesh, f"{row.loss:.1e}", f"{row.gradient:.1e}", f"{row.norm:.1e}", f"{row.parameter:.1e}",
            f"{row.real_error:.1e}" if row.real_error else "",
            *(f"{100 * n:.1f} %" if row.tp > 1 else "" for n in (row.parameters_divided, row.flops_divided)),
            row.verdict,
        ]
        for row in found.rows
    ]  # fmt: skip
    columns = ("plan", "mesh", "loss", "gradients", "norm", "parameters", "as cast", "divided", "FLOPs", "")
    console = output()
    for line in found.remarks:
        console.print(line)
    console.print(_of_trace(found.traced))
    limit = max(row.limit for row in found.rows)
    console.print(table(f"ranks against the eager module, float64, relative (limit {limit:.1g})", columns, cells))
    for row in found.rows:
        if row.first:
            console.print(f"{row.name}: first differs: {row.first}")
    zero = sorted({name for row in found.rows for name in row.zero})
    if zero:
        console.print(f"structurally zero gradients, not compared after the steps: {', '.join(zero)}")
    console.print("all equal" if found.passed else "NOT EQUAL")


def _of_trace(traced: Captured) -> str:
    dtype = str(traced.dtype).removeprefix("torch.")
    words = f"graph against the eager module, {dtype}: {traced.error:.1e} (limit {traced.limit:.1e}"
    words += f", eager itself is {traced.rounded:.1e} off float64)"
    return words if traced.passed else f"{words} DIFFERS: {traced.worst}"


def _document(found: Found) -> str:
    traced = found.traced
    document = {
        "model": str(found.subject.source), "remarks": found.remarks,
        "traced_error": traced.error, "traced_limit": traced.limit,
        "plans": [{**row.__dict__, "passed": row.passed} for row in found.rows], "passed": found.passed,
    }  # fmt: skip
    return json.dumps(document, indent=1) + "\n"
