"""Files that version 6 wrote are read; what no step leads to is refused with the command that plans it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from examples.gpt import model
from partitioner import Cluster, Plan, lower, search, trace
from partitioner.errors import InputError
from partitioner.plan.migrate import VERSION
from partitioner.precision import OWN
from runtime.report import Report

OLD = Path(__file__).parent / "version_6"


def document(name: str = "plan") -> dict[str, Any]:
    return json.loads((OLD / f"{name}.json").read_text())


def load(data: dict[str, Any], folder: Path) -> Plan:
    (folder / "plan.json").write_text(json.dumps(data))
    return Plan.load(folder / "plan.json")


def test_a_plan_of_float32_decides_and_costs_what_it_did(tmp_path: Path) -> None:
    old, plan = document(), Plan.load(OLD / "plan.json")
    assert old["version"] == 6
    assert plan.decisions.precision == OWN
    assert not plan.stale
    assert plan.cost.step_seconds == old["found"]["cost"]["step_seconds"]
    graph = trace(*model(layers=1, hidden=16, heads=2, seq=8, vocab=256))
    assert lower(graph, plan).mesh == {"pp": 1, "dp": 1, "tp": 2}
    plan.save(tmp_path / "new.json")
    assert json.loads((tmp_path / "new.json").read_text())["version"] == VERSION
    assert Plan.load(tmp_path / "new.json") == plan


def test_one_of_bfloat16_was_priced_with_copies_that_it_never_had() -> None:
    plan = Plan.load(OLD / "plan_bfloat16.json")
    assert (plan.decisions.precision, plan.edited) == (OWN, ["precision"])


def test_layouts_that_were_placements_along_tp_are_what_is_found_now(tmp_path: Path) -> None:
    path = OLD.parent / "version_8" / "plan.json"
    old, data = Plan.load(path), json.loads(path.read_text())
    graph = trace(*model(layers=1, hidden=15, heads=3, seq=8, vocab=256))
    pins: dict[str, str | int] = {"tp": 2, "boundary": "sharded"}
    found = search(graph, Cluster.load("local-cpu", devices=4), 8, pins, old.model, keep=2)
    assert (found.decisions, found.parameters, found.reads) == (old.decisions, old.parameters, old.reads)
    laid = [[[(op.operands, op.result) for op in block.ops] for block in plan.blocks] for plan in (found, old)]
    assert laid[0] == laid[1]
    assert lower(graph, old).axes == (("tp", 2),)
    data["found"]["cost"]["stages"][0]["partial_bytes"] = 8.0
    assert load(data, tmp_path).cost.stages[0].partial_bytes == {"tp": 8.0}


def test_software_has_no_trait_that_it_was_not_priced_with(tmp_path: Path) -> None:
    path = OLD.parent / "version_10" / "plan.json"
    plan, data = Plan.load(path), json.loads(path.read_text())
    assert not plan.stale
    assert (plan.machine.software.name, plan.machine.software.overlap_context) == ("megatron", False)
    assert plan.machine.software.plans is not None
    assert not plan.machine.software.plans.end_slots
    data["asked"]["software"]["fused"] = False
    assert load(data, tmp_path).edited == ["software"]


def test_an_edited_cluster_is_still_edited(tmp_path: Path) -> None:
    data = document()
    data["asked"]["cluster"]["device"]["memory_bytes"] *= 2
    assert load(data, tmp_path).edited == ["cluster"]


def test_a_report_is_read() -> None:
    report = Report.load(OLD / "report.json")
    assert (report.decisions.precision, report.steps) == (OWN, 2)
    assert Report.of(json.loads(report.to_json()), "again") == report


def _newer(data: dict[str, Any]) -> None:
    data["version"] = VERSION + 1


def _older(data: dict[str, Any]) -> None:
    data["version"] = 3


def _with_bytes(data: dict[str, Any]) -> None:
    data["asked"]["cluster"]["software"]["optimizer_bytes"] = 12


def _without_cluster(data: dict[str, Any]) -> None:
    del data["asked"]["cluster"]["software"]


AGAIN = "plan again: partitioner plan examples/gpt.py:model --cluster local-cpu --devices 2 --global-batch 4"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_newer, f"version {VERSION + 1} is newer than this program, which reads {VERSION}: update it"),
        (_older, f"version 3 is not known here; {AGAIN}"),
        (_with_bytes, f"its cluster says what a parameter holds, which a plan does now; {AGAIN}"),
        (_without_cluster, "not whole, for version 6: KeyError"),
    ],
)
def test_what_can_not_be_read_is_refused_with_the_mend(change: Any, words: str, tmp_path: Path) -> None:
    data = document()
    change(data)
    with pytest.raises(InputError) as raised:
        load(data, tmp_path)
    assert words in str(raised.value)


def test_a_precision_that_nothing_computes_in_is_refused(tmp_path: Path) -> None:
    graph = trace(*model(layers=1, hidden=16, heads=2, seq=8, vocab=256))
    plan = search(graph, Cluster.load("local-cpu", devices=2), 4, {"tp": 2})
    data = json.loads(plan.to_json())
    data["decisions"]["precision"]["compute"] = "float99"
    with pytest.raises(InputError, match=r"decisions\.precision\.compute must be one of bfloat16"):
        load(data, tmp_path)
