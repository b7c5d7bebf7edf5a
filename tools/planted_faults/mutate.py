"""Plants faults in lowered Programs and in the engine, and checks that the comparison of ``verify`` sees each one.

python -m tools.planted_faults.mutate [--most N]      exit status 1 when a fault survives
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partitioner import Graph, Plan, search
from partitioner.errors import InputError
from partitioner.plan.recompute_ways import WAYS
from partitioner.schedule.tables import PLAIN
from partitioner.sharding.mesh_axes import DP, PP, TP
from partitioner.sharding.op_rules import RULES
from runtime.ranks import launch
from tools.planted_faults.cases import case
from tools.planted_faults.mutate_rank import Result
from tools.planted_faults.rule_faults import forgetting
from tools.screen import output, table
from tools.verify.plan_families import cluster

SAMPLES = 4
MOST = 16  # faults in the Program of each plan, beside all of its engine's
LIMIT_SECONDS = 900.0
Pins = dict[str, str | int]


@dataclass(frozen=True)
class Model:
    """A model and its plans: name, pins, and the rule that is wrong while the plan is made ("" for none).

    ``precision``: a preset, whose decisions are taken in float64; ``real``: in their own types, and the faults are
    those of casts. ``float32``: patterns of what stays in it. ``ranks``: how many run each plan. ``inside``: whether
    faults in the Program are planted, beside those of the engine, which all ranks have.
    """

    spec: str
    settings: dict[str, object]
    plans: tuple[tuple[str, Pins, str], ...]
    precision: str = "own"
    float32: tuple[str, ...] = ()
    real: bool = False
    ranks: int = 2
    inside: bool = True


_GPT: dict[str, object] = {"vocab": 32, "hidden": 32, "layers": 4, "heads": 4, "seq": 8, "dropout": 0.1, "tied": True}
_PLAIN_GPT = _GPT | {"dropout": 0.0, "tied": False}  # torch rounds the scale, and sums of tied weights
_LINEAR = next(name for name, rule in RULES.items() if rule.weight == "n k")


def _undivided(name: str) -> tuple[tuple[str, Pins, str], ...]:
    """Plans that run the same ops on the same samples as one process does, one by one."""
    return (
        (f"{name} casts, dp2", {DP: 2, "micro_batch": 1}, ""),
        (f"{name} casts, pp2", {PP: 2, "micro_batch": 1, "schedule": PLAIN}, ""),
        *((f"{name} casts, ZeRO {zero}", {DP: 2, "micro_batch": 1, "zero": zero}, "") for zero in (1, 2, 3)),
    )


MODELS = (
    Model("examples/gpt.py:model", _GPT, (
        ("gpt dp2", {DP: 2, "micro_batch": 1}, ""),
        ("gpt tp2", {TP: 2, "micro_batch": 2, "boundary": "whole"}, ""),
        ("gpt sp2", {TP: 2, "micro_batch": 2, "boundary": "sharded"}, ""),
        *((f"gpt sp2, {way}", {TP: 2, "micro_batch": 2, "boundary": "sharded", "recompute": way}, "") for way in WAYS),
        ("gpt pp2", {PP: 2, "micro_batch": 1, "schedule": PLAIN}, ""),
        ("gpt tp2, linear's rule", {TP: 2, "micro_batch": 2, "boundary": "whole"}, _LINEAR),
        ("gpt sp2, linear's rule", {TP: 2, "micro_batch": 2, "boundary": "sharded"}, _LINEAR),
    )),
    Model("examples/gpt.py:model", _GPT, (
        ("gpt fp16 dp2", {DP: 2, "micro_batch": 1}, ""),
        *((f"gpt fp16 ZeRO {zero}", {DP: 2, "micro_batch": 1, "zero": zero}, "") for zero in (1, 2, 3)),
    ), "fp16"),
    Model("examples/gpt.py:model", _GPT, (
        ("gpt ZeRO 3 over 2 of 4", {DP: 4, "micro_batch": 1, "zero": 3, "zero_group": 2}, ""),
        ("gpt tp2 x ZeRO 1", {TP: 2, DP: 2, "micro_batch": 1, "boundary": "sharded", "zero": 1}, ""),
        ("gpt pp2 x ZeRO 3", {PP: 2, DP: 2, "micro_batch": 1, "schedule": PLAIN, "zero": 3}, ""),
    ), "bf16", ranks=4, inside=False),  # a fault of one stage alone would leave the others waiting
    Model("examples/gpt.py:model", _PLAIN_GPT, _undivided("gpt bf16"), "bf16", ("*norm*",), real=True),
    Model("examples/gpt.py:model", _PLAIN_GPT, _undivided("gpt fp16"), "fp16", real=True),
    Model("hf:llama", {"num_hidden_layers": 2}, _undivided("llama"), "bf16", real=True),
    Model("hf:llama", {"num_hidden_layers": 2}, (
        ("llama sp2", {TP: 2, "micro_batch": 2, "boundary": "sharded"}, ""),
        ("llama pp2", {PP: 2, "micro_batch": 1, "schedule": PLAIN}, ""),
        ("llama sp2, linear's rule", {TP: 2, "micro_batch": 2, "boundary": "sharded"}, _LINEAR),
    )),
)  # fmt: skip


def run(models: Sequence[Model] = MODELS, most: int = MOST) -> list[Result]:
    """The plans as they are and at most so many mutants of each, in one launch for each number of ranks."""
    numbers = sorted({model.ranks for model in models})
    return [row for n in numbers for row in _launched([m for m in models if m.ranks == n], n, most)]


def _launched(models: Sequence[Model], ranks: int, most: int) -> list[Result]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = [_job(model, most, folder) for model in models]
        (folder / "jobs").write_text(json.dumps(jobs))
        result = launch.local_module("tools.planted_faults.mutate_rank", [str(folder)], ranks, LIMIT_SECONDS)
        if result.failure is not None:
            raise InputError(f"mutate stopped: {result.failure}")
        return [Result(**row) for row in json.loads((folder / "result").read_text())]


def _job(model: Model, most: int, folder: Path) -> dict[str, object]:
    kind: dict[str, Any] = {
        "spec": model.spec, "settings": model.settings, "samples": SAMPLES, "precision": model.precision,
        "float32": model.float32, "is_real": model.real,
    }  # fmt: skip
    graph = case(**kind).graph
    for name, pins, rule in model.plans:
        with forgetting(rule):
            _plan(graph, pins, model.ranks).save(folder / f"{name}.json")
    plans = {name: (most if model.inside else 0, rule) for name, _, rule in model.plans}
    return {"case": kind, "plans": plans}


def _plan(graph: Graph, pins: Pins, ranks: int) -> Plan:
    defaults: Pins = {TP: 1, PP: 1, DP: 1, "recompute": "off", "zero": 0}
    return search(graph, cluster(ranks), SAMPLES, defaults | pins)


UNPLANTED = ("TypeError", "AttributeError")  # what the planting raises where the engine has changed


def is_caught(row: Result) -> bool:
    """A difference beyond the limit, or no run at all; a fault that can't be planted as it is written shows none."""
    return not row.raised.startswith(UNPLANTED) and (bool(row.raised) or not row.error <= row.limit)


def is_fault(row: Result) -> bool:
    """A mutant, or a plan made with a wrong rule."""
    return row.planted or row.plan.endswith("rule")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each fault and what was seen of it."""
    parser = argparse.ArgumentParser(prog="python -m tools.planted_faults.mutate", description=__doc__)
    parser.add_argument("--most", type=int, default=MOST, help="faults in the Program of each plan")
    rows = run(most=parser.parse_args(arguments).most)
    cells = [[row.plan, row.mutant, row.raised[:60] or f"{row.error:.1e}", _verdict(row)] for row in rows]
    output().print(table("faults, and the largest relative error they make", ("plan", "fault", "error", ""), cells))
    faults = [row for row in rows if is_fault(row)]
    caught = sum(is_caught(row) for row in faults)
    output().print(f"{caught} of {len(faults)} faults caught, {sum(r.seconds for r in rows):.0f} s")
    sound = not any(is_caught(row) for row in rows if not is_fault(row))
    return 0 if sound and caught == len(faults) else 1


def _verdict(row: Result) -> str:
    if is_fault(row):
        return "caught" if is_caught(row) else "SURVIVES"
    return "DIFFERS" if is_caught(row) else "equal"


if __name__ == "__main__":
    raise SystemExit(main())
