"""Habits through the front doors: ``parallelize`` in a loop of one's own, ``partitioner plan``, ``run``, ``verify``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.ranks.launch import local
from runtime.report import Report
from tools.main import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOSSES = ("sum_over_batch", "sum_over_tokens", "sum_over_count", "masked_mean", "mean_a_sample", "weight_penalty")
DOORS = [
    "shapes.plain", "shapes.plain/tp=2", "shapes.plain/pp=2", "shapes.zero_gates", "batches.loss_mask",
    *(f"losses.{name}" for name in LOSSES), "losses.sum_over_batch/tp=2", "losses.sum_over_tokens/pp=2",
    "precision.complex_buffer/tp=2", "frozen.embedding/tp=2", "inplace.view", "randomness.frozen_eval_by_hand",
]  # fmt: skip
PATHS = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
PLACE = ["--cluster", "local-cpu", "--devices", "2", "--global-batch", "8"]
pytestmark = [pytest.mark.habits, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def trained() -> dict[str, list[list[float]] | str]:
    said: list[str] = []
    result = local([sys.executable, str(HERE / "door.py"), *DOORS], 2, 500.0, PATHS, said.append)
    assert result.failure is None, result.stderr
    return json.loads(said[-1])


@pytest.mark.parametrize("name", DOORS)
def test_a_loop_of_ones_own_trains_as_the_plain_one(name: str, trained: dict[str, list[list[float]] | str]) -> None:
    """Example 4, global batch 16, float32."""
    losses = trained[name]
    assert not isinstance(losses, str), losses
    assert [row[0] for row in losses] == pytest.approx([row[1] for row in losses], rel=1e-5)


def test_run_reports_the_plain_loss(tmp_path: Path) -> None:
    """Bytes of text under 256 ids: about ln 256 at first, whatever the example's batch was."""
    plan, report = tmp_path / "plan.json", tmp_path / "report.json"
    assert main(["plan", f"{HERE / 'written.py'}:summed", *PLACE, "-o", str(plan)]) == 0
    assert main(["run", str(plan), "--steps", "2", "--report", str(report)]) == 0
    assert Report.load(report).losses[0] == pytest.approx(5.6, abs=0.5)
    assert main(["verify", str(plan)]) == 0


@pytest.mark.parametrize(
    "words", [["plan", *PLACE], ["verify", "--ranks", "2"]], ids=["plan", "verify"],
)  # fmt: skip
def test_json_is_json_whatever_the_model_prints(words: list[str]) -> None:
    command = [sys.executable, "-m", "tools.main", words[0], f"{HERE / 'written.py'}:talkative", *words[1:], "--json"]
    found = subprocess.run(command, cwd=ROOT, env=os.environ | PATHS, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    json.loads(found.stdout)
    assert "parameters:" in found.stderr
