"""A run goes on with fewer ranks, and with more, to where it would have come undisturbed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.main import main

ROOT = Path(__file__).parents[3]
GPT = f"{ROOT / 'examples' / 'gpt.py'}:model"
SMALL = ["--set", "vocab=256", "hidden=32", "heads=4", "seq=32", "layers=3", "dropout=0.1"]
pytestmark = pytest.mark.disturbed


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    place = ["--cluster", "local-cpu", "--devices", "4", "--global-batch", "12", "--pin", "pp=2", "--pin", "zero=1"]
    assert main(["plan", GPT, *SMALL, *place, "-o", str(path)]) == 0
    return str(path)


def _losses(plan: str, report: Path, *words: str) -> list[float]:
    assert main(["run", plan, "--lr", "0.01", *words, "--report", str(report)]) == 0
    return json.loads(report.read_text())["losses"]


@pytest.mark.timeout(400)
def test_four_then_three_then_two(plan: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = _losses(plan, tmp_path / "whole.json", "--steps", "6")
    found, folder = list[float](), ["--checkpoint", str(tmp_path / "saved"), "--elastic"]
    for steps, ranks in ((2, 4), (4, 3), (6, 2)):
        report = tmp_path / f"{ranks}.json"
        found += _losses(plan, report, "--steps", str(steps), "--ranks", str(ranks), *folder)
        assert json.loads(report.read_text())["ranks"] == ranks
    assert found == pytest.approx(whole, rel=1e-5)
    said = re.findall(r"(\d) ranks came, not the plan's 4: planned anew in", capfd.readouterr().err)
    assert said == ["3", "2"]


def test_other_ranks_are_asked_for(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", plan, "--steps", "2", "--ranks", "2"]) == 2
    assert "the plan is for 4 ranks, not 2: --elastic plans anew for them" in capsys.readouterr().err


@pytest.mark.timeout(300)
def test_torchrun_is_told_why(plan: str, tmp_path: Path) -> None:
    """Of weights that are not there."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--log-dir", str(tmp_path)]
    words = ["-m", "tools.main", "run", plan, "--steps", "2", "--weights", str(tmp_path / "none"), "--elastic"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*launcher, *words], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    told = [json.loads(path.read_text())["message"] for path in tmp_path.rglob("error.json")]
    assert any("none" in row["message"] for row in told), done.stderr[-3000:]
