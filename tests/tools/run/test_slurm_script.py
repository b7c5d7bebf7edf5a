"""The batch script starts the same command on as many nodes as the plan has; elsewhere than there it is not started."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from partitioner import Plan
from tools.main import main
from tools.run.slurm_script import slurm_script

GPT = f"{Path(__file__).parents[3] / 'examples' / 'gpt.py'}:model"
SMALL = ["--set", "vocab=256", "hidden=32", "heads=4", "seq=32", "layers=2"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    place = ["--cluster", "dgx-h100", "--nodes", "2", "--global-batch", "32", "--pin", "dp=8", "--pin", "tp=2"]
    assert main(["plan", GPT, *SMALL, *place, "-o", str(path)]) == 0
    return str(path)


def test_it_starts_the_same_command(plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, folder = tmp_path / "job.sh", tmp_path / "a folder"
    assert main(["run", plan, "--slurm", str(script), "--steps", "9", "--checkpoint", str(folder)]) == 0
    assert f"written to {script}: sbatch takes it" in capsys.readouterr().out.replace("\n", "")
    lines = script.read_text().splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8", "#SBATCH --gpus-per-node=8"} < set(lines)
    assert "#SBATCH --job-name=gpt-py-model" in lines
    assert lines[-1].endswith(f"-m tools.main run {plan} --steps 9 --checkpoint '{folder}'")
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_a_part_of_a_node(plan: str) -> None:
    few = Plan.load(plan)
    few = replace(few, cluster={**few.cluster, "node_devices": 64})
    assert "--nodes=1\n#SBATCH --ntasks-per-node=16\n" in slurm_script(few, ["run", "--slurm=x", "p"])


def test_a_plan_of_two_nodes_is_not_started_on_one(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", plan, "--steps", "9"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the plan is for 16 ranks on 2 nodes of 8, and this is one machine: start the same command on every" in said
