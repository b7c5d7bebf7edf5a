"""``verify PLAN --dry-run``: what it prints, and its exit status for what is right, wrong and no plan."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from partitioner.schedule.tables import Action
from tools.main import main

ROOT = Path(__file__).parents[3]
GPT = [f"{ROOT / 'examples' / 'gpt.py'}:model", "--set", "vocab=256", "hidden=32", "heads=4", "seq=32", "layers=2"]
PINS = ["--pin", "tp=2", "--pin", "pp=2", "--pin", "micro_batch=2", "--pin", "schedule=1f1b"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert main(["plan", *GPT, "--cluster", "local-cpu", "--global-batch", "8", *PINS, "-o", str(path)]) == 0
    return path


def test_all_ranks_are_right(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(plan), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 ranks, 4 distinct; of 4 micro-batches the first and last executed, the others played" in out
    assert out.count("right") == 4
    assert "all ranks meet" in out


def test_json_tells_every_distinct_rank(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(plan), "--dry-run", "--every", "--backend", "gloo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert found["ranks"] == sum(row["stands_for"] for row in found["distinct"]) == 4
    for row in found["distinct"]:
        assert row["sends"] == row["receives"] == 4
        assert row["traffic"]["pp send send"] == 4 * 2 * 32 * 32 * 4  # micro-batches of 2 x 32 x 32 float32
        assert sum(row["traffic"].values()) == row["payload_bytes"]


def test_what_is_wrong_is_said(
    plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[Action(s, k, m) for m in range(4) for k in "FB"] for s in (0, 1)]
    rows[1].sort(key=lambda a: (a.micro_batch // 2, -ord(a.kind)))
    module = importlib.import_module("partitioner.plan.parallelism")
    monkeypatch.setattr(module, "schedule", lambda *_: tuple(map(tuple, rows)))
    assert main(["verify", str(plan), "--dry-run"]) == 1
    out = capsys.readouterr().out
    assert "NOT RIGHT" in out
    assert "rank 0: deadlock: it waits in recv from rank 2" in out


def test_what_is_no_plan_is_refused(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", GPT[0], "--dry-run"]) == 2
    assert "--dry-run takes a plan.json" in capsys.readouterr().err
    stale = json.loads(plan.read_text())
    stale["decisions"]["seed"] += 1
    unnamed = json.loads(plan.read_text())
    del unnamed["asked"]["model"]["entry"]
    for document, words in ((stale, "the plan is stale"), (unnamed, "the plan names no model")):
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(document))
        assert main(["verify", str(path), "--dry-run"]) == 2
        assert words in capsys.readouterr().err
