"""A plan file is edited by hand and solved again around the edits; what no pin can keep is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shown import plan

from partitioner import Plan
from partitioner.sharding.layout import layout_json, shard_whole
from tools.bench.json_schemas import schemas
from tools.main import main

DOCS = Path(__file__).parents[3] / "docs"
Edit = Callable[[dict[str, Any]], object]
HALVES = layout_json((shard_whole(1, 32, 2),))  # of a sequence


def edited(path: Path, change: Edit) -> Path:
    data = json.loads(plan().to_json())
    change(data)
    path.write_text(json.dumps(data))
    return path


def _ports(data: dict[str, Any], words: list[Any]) -> None:
    boundaries = data["decisions"]["boundaries"]
    data["decisions"]["boundaries"] = {name: [words for _ in ports] for name, ports in boundaries.items()}


def _mesh(data: dict[str, Any]) -> None:
    data["decisions"]["mesh"] = {"pp": 2, "dp": 4, "tp": 1}


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda d: d["decisions"].update(micro_batch=2), lambda p: p.parallelism.micro_batch == 2),
        (lambda d: d["decisions"].update(schedule="gpipe"), lambda p: p.parallelism.schedule == "gpipe"),
        (lambda d: d["decisions"].update(recompute="full"), lambda p: p.parallelism.recompute == "full"),
        (lambda d: d["decisions"].update(seed=7), lambda p: p.decisions.seed == 7),
        (lambda d: d["asked"].update(global_batch=32), lambda p: p.global_batch == 32),
        (lambda d: d["decisions"]["parameters"].update({"blocks.*.mlp.0.weight": ["W"]}),
         lambda p: p.parameters["blocks.2.mlp.0.weight"] in (["W"], ["R"])),
        (lambda d: d["decisions"].update(stages=[d["decisions"]["stages"][0] + d["decisions"]["stages"][1][:1],
                                                 d["decisions"]["stages"][1][1:]]),
         lambda p: [len(s) for s in p.decisions.stages] == [4, 2]),
        (lambda d: _ports(d, HALVES), lambda p: isinstance(p.decisions.boundaries["blocks.0"][0][0], list)),
    ],
    ids=["micro_batch", "schedule", "recompute", "seed", "global_batch", "parameters", "stages", "boundaries"],
)  # fmt: skip
def test_an_edit_is_kept(change: Edit, kept: Callable[[Plan], bool], tmp_path: Path) -> None:
    path, made = edited(tmp_path / "plan.json", change), tmp_path / "again.json"
    assert Plan.load(path).stale
    assert not kept(plan())
    assert main(["plan", "--edit", str(path), "-o", str(made)]) == 0
    again = Plan.load(made)
    assert kept(again)
    assert not again.stale
    assert again.parallelism.mesh == plan().parallelism.mesh


def test_an_edited_mesh_gives_way_to_no_pin_of_its_own(tmp_path: Path) -> None:
    path, made = edited(tmp_path / "plan.json", _mesh), tmp_path / "again.json"
    assert main(["plan", "--edit", str(path), "-o", str(made)]) == 0
    assert Plan.load(made).parallelism.mesh == {"pp": 2, "dp": 4, "tp": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["decisions"].update(micro_batches=99), "decisions.micro_batches was edited, and no pin"),
        (lambda d: d["decisions"].update(recomputed=[1, 1]), "decisions.recomputed was edited, and no pin"),
        (lambda d: _ports(d, ["S(1)"]), "decisions.boundaries.blocks.0: 'S(1)' is not a placement: write W, R"),
        (lambda d: d["decisions"]["parameters"].update(nothing=["W"]), "names no parameter of the model: nothing"),
        (lambda d: d["decisions"].update(stages=[["blocks.0"]], recomputed=[0]), "cuts 1 units, the model has 6"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    change: Edit, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--edit", str(edited(tmp_path / "plan.json", change))]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["decisions"]["mesh"].update(pp=2_000_000_000), "STALE: mesh edited"),
        (lambda d: d["decisions"]["mesh"].update(pp=10**40), "too large a number"),
        (lambda d: d["asked"]["model"].update(entry="\x1b]0;taken\x07"), "a control character"),
        (lambda d: d["asked"]["model"].pop("tokens"), "asked.model.tokens"),
        (lambda d: d["asked"]["cluster"]["device"].pop("name"), "device.name is missing"),
        (lambda d: d["derived"]["blocks"][0].update(units=["elsewhere"]), "plan again"),
        (lambda d: d["found"]["cost"].update(step_seconds=float("inf")), "found.cost.step_seconds"),
        (lambda d: d.update(derived=[[[]]] * 9), "derived must be an object"),
    ],
)
def test_a_hostile_file_is_refused(
    change: Edit, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(tmp_path / "plan.json", change)
    for command in (["show", str(path)], ["compare", str(path), str(path)]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert words in told
        assert "\x1b" not in told


@pytest.mark.parametrize("text", ["[" * 100_000, '{"version": ' + "9" * 5000 + "}", "\x00", "null", " " * 17_000_000])
def test_what_is_no_plan_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").write_text(text)
    assert main(["show", str(tmp_path / "plan.json")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_entry_that_can_not_be_loaded_is_told_as_the_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(tmp_path / "plan.json", lambda d: d["asked"]["model"].update(entry="ledom:yp.tpg"))
    for command in (["plan", "--edit", str(path)], ["verify", str(path)], ["show", str(path), "--program"]):
        assert main(command) == 2
        assert "the plan's asked.model: MODEL 'ledom:yp.tpg' is none of" in capsys.readouterr().err


def test_blocks_that_are_not_the_models_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = edited(tmp_path / "plan.json", lambda d: d["derived"]["blocks"].reverse())
    assert main(["show", str(path), "--program"]) == 2
    assert "the plan's derived.blocks are not those of its model: " in capsys.readouterr().err
    path = edited(tmp_path / "plan.json", lambda d: d["derived"]["parameters"].pop("head.weight"))
    assert main(["show", str(path), "--program"]) == 2
    assert "the plan's derived.parameters have no layout of head.weight" in capsys.readouterr().err


def test_markup_in_a_name_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(data: dict[str, Any]) -> None:
        data["derived"]["blocks"][1]["products"][0]["module"] = "[bold]a[/bold]"

    assert main(["show", str(edited(tmp_path / "plan.json", change))]) == 0
    assert "[bold]a[/bold]" in capsys.readouterr().out


def test_the_schemas_are_those_of_the_code() -> None:
    for name, found in schemas().items():
        assert json.loads((DOCS / name).read_text()) == found, f"python -m tools.bench.json_schemas docs writes {name}"


def test_a_plan_and_its_schema_name_the_same_fields() -> None:
    found, data = schemas()["plan.schema.json"], json.loads(plan().to_json())

    def check(schema: dict[str, Any], value: Any, path: str) -> int:
        if "$ref" in schema:
            schema = found["$defs"][schema["$ref"].rpartition("/")[2]]
        if schema.get("type") == "array":
            each = schema.get("prefixItems") or [schema["items"]] * len(value)
            return sum(check(own, v, f"{path}[]") for own, v in zip(each, value, strict=True))
        if "properties" in schema:
            assert set(value) == set(schema["properties"]) == set(schema["required"]), path
            return 1 + sum(check(schema["properties"][key], value[key], f"{path}.{key}") for key in value)
        return 0

    assert check(found, data, "") > 100
