"""A plan whose fields contradict one another, or can't be, is refused as it is read, by the name of the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_plans import graph_of

from partitioner import Cluster, search
from partitioner.errors import InputError
from partitioner.plan.plan import Plan

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def text() -> str:
    return search(graph_of("gpt"), Cluster.load("dgx-a100", devices=4), 16, {"tp": 2, "pp": 2}).to_json()


def _cost(**changes: float) -> Edit:
    return lambda d: d["found"]["cost"].update(changes)


def _op(**changes: object) -> Edit:
    return lambda d: d["derived"]["blocks"][1]["ops"][1].update(changes)


def _scaled(key: str) -> Edit:
    return lambda d: d["found"]["cost"].update({key: 3 * d["found"]["cost"][key]})


WRONG: list[tuple[Edit, str]] = [
    (lambda d: d["asked"].update(global_batch=-8), "asked.global_batch must be positive, not -8"),
    (lambda d: d["asked"]["model"].update(parameters=-1), "asked.model.parameters has a wrong value '-1'"),
    (lambda d: d["asked"]["model"].update(entry=7), "asked.model.entry has a wrong value '7'"),
    (lambda d: d["asked"]["model"].update(entry="a.py:b"), "asked.model.settings is missing"),
    (lambda d: d["asked"]["model"].update(seq=0), "asked.model.seq has a wrong value '0'"),
    (lambda d: d["asked"]["model"].update(product_dtype="FLOAT32"), "asked.model.product_dtype 'FLOAT32' has no peak"),
    (lambda d: d["asked"]["cluster"].pop("name"), "asked.cluster.name is missing"),
    (lambda d: d["asked"]["cluster"]["device"].pop("watts"), "asked.cluster.device.watts is missing"),
    (lambda d: d["asked"]["cluster"].update(nodes=2**63), "asked.cluster: nodes and node.devices make more than"),
    (lambda d: d["decisions"].update(micro_batch=-2), "decisions.micro_batch must be positive, not -2"),
    (lambda d: d["decisions"].update(schedule="1F1B"), "decisions.schedule must be one of gpipe, 1f1b"),
    (lambda d: d["decisions"].update(recompute="some"), "decisions.recompute must be one of none"),
    (lambda d: d["decisions"].update(zero=4), "decisions.zero must be one of 0, 1, 2, 3"),
    (lambda d: d["decisions"]["stages"][0].append("blocks.0"), "decisions.stages names 'blocks.0' twice"),
    (lambda d: d["decisions"]["parameters"].update(a=["Q"]), "decisions.parameters.a: 'Q' is not a placement"),
    (lambda d: d["decisions"].update(seed=-1), "decisions.seed must be at least 0, not -1"),
    (lambda d: d["found"]["searched"].pop("walked"), "found.searched.walked is missing"),
    (_cost(step_seconds=0.0), "found.cost.step_seconds must be positive"),
    (_cost(sync_seconds=-0.5), "found.cost.sync_seconds must be at least 0, not -0.5"),
    (_cost(bubble_seconds=-0.5), "found.cost.bubble_seconds must be at least 0, not -0.5"),
    (_scaled("compute_seconds"), "found.cost: the compute, exposed, bubble and optimizer seconds add up to"),
    (_cost(communication_seconds=1.0), "found.cost: the communication and sync seconds add up to"),
    (_scaled("peak_bytes"), "found.cost: its stages hold"),
    (lambda d: d["found"]["cost"]["exposed_seconds"].update(xp=0.0), "found.cost.exposed_seconds names 'xp'"),
    (lambda d: d["derived"]["reads"].pop("blocks.0"), "derived.reads is not of the units of its blocks: 'blocks.0'"),
    (lambda d: d["derived"]["reads"]["blocks.1"].pop(), "derived.reads.blocks.1 must name the 1 values that enter"),
    (lambda d: d["derived"]["reads"]["blocks.1"][0].__setitem__(0, "x"), "derived.reads.blocks.1 names 'x'"),
    (lambda d: d["derived"]["blocks"][1].update(ports=[["Q"]]), r"derived.blocks\[1\].ports\[0\]: 'Q' is not a"),
    (lambda d: d["derived"]["blocks"].append(d["derived"]["blocks"][0]), "derived.blocks names '.*' twice"),
    (_op(op="linear"), r"derived.blocks\[1\].ops\[1\].op must be as torch names it"),
    (_op(inputs=[]), r"derived.blocks\[1\].ops\[1\].inputs names 0 operands"),
    (_op(result=["W", "W"]), r"derived.blocks\[1\].ops\[1\].result: .* is not a layout"),
    (lambda d: d["derived"]["blocks"][1]["ops"].reverse(), "which comes later: plan again"),
    (lambda d: d["derived"]["parameters"].update({"head.weight": []}), "derived.parameters.head.weight: .. is not a"),
    (lambda d: d["derived"]["candidates"][0].update(step_seconds=-1), r"candidates\[0\].step_seconds must be at least"),
    (lambda d: d.update(version="\ud800"), "version"),
    (lambda d: d["asked"]["model"].update(entry="\ud800"), "asked.model.* holds a control character"),
]


@pytest.mark.parametrize(("change", "told"), WRONG, ids=[told for _, told in WRONG])
def test_what_is_wrong_is_told(change: Edit, told: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    Plan.load(tmp_path / "plan.json")
    data = json.loads(text)
    change(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=told) as raised:
        Plan.load(tmp_path / "plan.json")
    assert "plan.json" in str(raised.value)
    assert len(str(raised.value)) < 700


def test_a_key_that_stands_there_twice_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text.replace('"micro_batch":', '"seed": 1, "micro_batch":', 1))
    with pytest.raises(InputError, match=r"plan.json is not a whole JSON document \('seed' stands there twice\)"):
        Plan.load(path)


def test_edits_are_read_though_what_was_priced_no_longer_holds(text: str, tmp_path: Path) -> None:
    data = json.loads(text)
    data["decisions"]["mesh"].update(tp=1, dp=2)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert Plan.load(tmp_path / "plan.json").edited == ["mesh"]
