"""``partitioner verify``: families of plans, or one plan, on local gloo ranks against the plain model."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from partitioner import Graph, Plan, lower, search
from partitioner.errors import InputError
from partitioner.layout import Shard, parse_placement
from runtime import launch
from runtime.parity import FLOOR
from runtime.reference import run
from tools.dry_run import dry_run
from tools.entry import parse_settings
from tools.families import Family, cluster, families
from tools.models import Source, load
from tools.planned import load_plan
from tools.screen import output, status, table
from tools.traced import traced

TRACED, PARALLEL, SHARE = 1e-6, 1e-9, 0.95
LIMIT_SECONDS = 1800.0


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    verify = commands.add_parser(
        "verify",
        help="compare plans with the plain model on local ranks",
        epilog="example: partitioner verify hf:llama --ranks 4",
    )
    verify.add_argument("what", metavar="MODEL|PLAN", help="file.py:function, hf:TYPE, or a plan.json")
    verify.add_argument("--ranks", type=int, default=2, metavar="N")
    verify.add_argument("--set", action="append", default=[], nargs="+", metavar="k=v")
    verify.add_argument("--seq", type=int, metavar="S")
    verify.add_argument("--json", action="store_true")
    verify.add_argument("--dry-run", action="store_true", help="all ranks of a PLAN here, without values or machines")
    verify.add_argument("--backend", choices=("nccl", "gloo"), default="nccl", help="whose ways a dry run follows")
    verify.add_argument("--every", action="store_true", help="a dry run executes all micro-batches, slowly")
    verify.set_defaults(action=verify_command)


@dataclass(frozen=True)
class Row:
    """One plan's result; what its tp layout divides of parameters and FLOPs, and ``least`` of both asked."""

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
    first: str
    unforeseen: str

    @property
    def error(self) -> float:
        """The largest relative error."""
        return max(self.loss, self.gradient, self.norm, self.parameter)

    @property
    def passed(self) -> bool:
        """Equal to 1e-9, as much divided as was asked, and nothing sent but what was predicted."""
        divided = min(self.parameters_divided, self.flops_divided)
        return self.error <= PARALLEL and not self.unforeseen and divided >= self.least

    @property
    def verdict(self) -> str:
        """``equal``, or what is wrong."""
        if self.error > PARALLEL:
            return f"DIFFERS: {self.worst}"
        if self.unforeseen:
            return f"SENDS WHAT IS NOT PREDICTED: {self.unforeseen}"
        return "equal" if self.passed else f"DIVIDES LESS THAN {100 * self.least:g} %"


def verify_command(options: argparse.Namespace) -> int:
    """Exit status 0 when all is equal, 1 when something differs."""
    given = options.what.endswith(".json") and ":" not in options.what
    if options.dry_run:
        if not given:
            raise InputError(f"--dry-run takes a plan.json, not {options.what}: make one with partitioner plan")
        return dry_run(Plan.load(options.what), options)
    with status("loading") as say:
        if given:
            source, wanted = _of_plan(Plan.load(options.what))
        else:
            source, wanted = _of_model(options)
        if not options.json:
            output().print(str(source))
        say("tracing")
        graph = traced(source)
        error = traced_error(graph, source)
        for _, plan in wanted:
            lower(graph, plan)  # a plan of another model is refused here, before any rank starts
        say(f"running {len(wanted)} plans")
        rows = run_plans(source, wanted, graph, 0.0 if given else SHARE)
    passed = (error is None or error <= TRACED) and all(row.passed for row in rows)
    if options.json:
        options.document(_document(source, error, rows, passed))
    else:
        _print(error, rows, passed)
    return 0 if passed else 1


def _of_plan(plan: Plan) -> tuple[Source, list[tuple[str, Plan]]]:
    return load_plan(plan), [("the plan", plan)]


def _of_model(options: argparse.Namespace) -> tuple[Source, list[tuple[str, Plan]]]:
    if options.ranks < 2:
        raise InputError(f"verify needs at least 2 ranks, not {options.ranks}")
    settings = parse_settings(word for words in options.set for word in words)
    sys.stderr.write(f"importing {options.what}\n")
    batch = 2 * options.ranks
    source = load(options.what, settings, seq=options.seq, batch=batch, shrink=True)
    graph = traced(source)
    tried = families(graph, options.ranks, batch)
    return source, [(f.name, family_plan(graph, f, options.ranks, batch)) for f in tried]


def family_plan(graph: Graph, family: Family, ranks: int, global_batch: int) -> Plan:
    """The best plan under the family's pins; the search must not leave them."""
    return search(graph, cluster(ranks), global_batch, family.pins)


def traced_error(graph: Graph, source: Source) -> float | None:
    """Comparison (a): loss and gradients of the normalized graph against the eager module, both in float32.

    None for a model that draws dropout: the two draw different masks.
    """
    if any(n.target == torch.ops.partitioner.dropout.default for n in graph.module.graph.nodes):
        return None
    module, batch = source.module, source.batch
    module.zero_grad()
    out = module(**batch)
    loss = out if isinstance(out, torch.Tensor) else out["loss"] if isinstance(out, dict) else out.loss
    loss.backward()
    own = dict(module.named_parameters(remove_duplicate=False))
    wanted = {n: own[n].grad for n in graph.parameters}
    copies = {n: own[n].detach().clone().requires_grad_(p.requires_grad) for n, p in graph.parameters.items()}
    found = run(graph, copies, batch)
    found.backward()
    module.zero_grad()
    size = sorted(float(g.abs().max()) for g in wanted.values() if g is not None)
    median = size[len(size) // 2]
    errors = [abs(float(found.detach()) - float(loss.detach())) / abs(float(loss.detach()))]
    for name, gradient in wanted.items():
        other = copies[name].grad
        if gradient is not None or other is not None:
            a, b = (torch.zeros_like(own[name]) if g is None else g for g in (other, gradient))
            errors.append(float((a - b).abs().max()) / max(float(b.abs().max()), FLOOR * median))
    return math.inf if any(map(math.isnan, errors)) else max(errors)


def run_plans(source: Source, plans: list[tuple[str, Plan]], graph: Graph, least: float) -> list[Row]:
    """All plans of one world size in one launch of that many ranks; ``least`` is to be divided where tp is 2."""
    rows: list[Row] = []
    for ranks in sorted({plan.world for _, plan in plans}):
        chosen = [(name, plan) for name, plan in plans if plan.world == ranks]
        with tempfile.TemporaryDirectory() as folder:
            found = _launch(source, chosen, ranks, Path(folder))
        rows += [_row(name, plan, graph, least, result) for (name, plan), result in zip(chosen, found, strict=True)]
    return rows


def _launch(source: Source, plans: list[tuple[str, Plan]], ranks: int, folder: Path) -> list[dict[str, object]]:
    for n, (_, plan) in enumerate(plans):
        plan.save(folder / f"{n}.json")
    model = {"spec": source.spec, "settings": source.settings, "seq": source.seq, "batch": source.batch_size}
    (folder / "model").write_text(json.dumps(model))
    command = [sys.executable, "-m", "tools.verify_rank", str(folder), str(len(plans))]
    environment = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    result = launch.local(command, ranks, LIMIT_SECONDS, environment)
    if result.failure is not None:
        sys.stderr.write(result.stderr[result.failure.rank or 0])
        raise InputError(f"verify stopped: {result.failure}")
    return json.loads((folder / "result").read_text())


def _row(name: str, plan: Plan, graph: Graph, least: float, result: Mapping[str, object]) -> Row:
    mesh = plan.decisions.mesh
    words = " ".join(f"{axis} {mesh[axis]}" for axis in ("pp", "dp", "tp") if mesh[axis] > 1)
    least = least if mesh["tp"] == 2 else 0.0
    shares = {"parameters_divided": divided_parameters(plan, graph), "flops_divided": divided_flops(plan, graph)}
    return Row(name, words, plan.world, mesh["tp"], least, **shares, **result)  # type: ignore[arg-type]


def divided_parameters(plan: Plan, graph: Graph) -> float:
    """The share of parameter elements whose layout is a shard."""
    sizes = {name: math.prod(info.shape) for name, info in graph.parameters.items()}
    parts = [sizes[n] for n, word in plan.parameters.items() if isinstance(parse_placement(word), Shard)]
    return sum(parts) / sum(sizes[n] for n in plan.parameters)


def divided_flops(plan: Plan, graph: Graph) -> float:
    """The share of forward FLOPs of ops that run on a shard."""
    flops = dict(graph.digraph.nodes(data="forward_flops"))
    rows = [(len(block.units) * flops[op.name], (*op.operands, op.result)) for block in plan.blocks for op in block.ops]
    parts = [n for n, words in rows if any(isinstance(parse_placement(w), Shard) for w in words)]
    return sum(parts) / sum(n for n, _ in rows)


def _print(traced: float | None, rows: list[Row], passed: bool) -> None:
    cells = [
        [
            row.name, row.mesh, f"{row.loss:.1e}", f"{row.gradient:.1e}", f"{row.norm:.1e}", f"{row.parameter:.1e}",
            *(f"{100 * n:.1f} %" if row.tp > 1 else "" for n in (row.parameters_divided, row.flops_divided)),
            row.verdict,
        ]
        for row in rows
    ]  # fmt: skip
    columns = ("plan", "mesh", "loss", "gradients", "norm", "parameters", "divided", "FLOPs", "")
    console = output()
    if traced is None:
        console.print("graph against the eager module: not compared, the model draws dropout")
    else:
        console.print(f"graph against the eager module, float32: {traced:.1e} (limit {TRACED:g})")
    console.print(table(f"ranks against one process, float64, relative (limit {PARALLEL:g})", columns, cells))
    for row in rows:
        if row.first:
            console.print(f"{row.name}: first differs: {row.first}")
    zero = sorted({name for row in rows for name in row.zero})
    if zero:
        console.print(f"structurally zero gradients, not compared after the steps: {', '.join(zero)}")
    console.print("all equal" if passed else "NOT EQUAL")


def _document(source: Source, traced: float | None, rows: list[Row], passed: bool) -> str:
    found = [{**row.__dict__, "passed": row.passed} for row in rows]
    document = {"model": str(source), "traced_error": traced, "plans": found, "passed": passed}
    return json.dumps(document, indent=1) + "\n"


