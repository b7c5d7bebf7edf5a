"""The same command under torchrun and under srun, whose variables are set here: ranks meet, and one tells."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.ranks.slurm import FIRST_PORT, PORTS
from runtime.report import Report
from tools.main import main

COMMAND = [sys.executable, "-m", "tools.main"]
ALONE = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
ENVIRONMENT = ALONE | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.disturbed


@pytest.fixture(scope="module")
def losses(two_ranks: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, ...]:
    """Of three steps that our own launcher starts."""
    report = tmp_path_factory.mktemp("report") / "report.json"
    assert main(["run", two_ranks, "--steps", "3", "--report", str(report)]) == 0
    return Report.load(report).losses


def _job_with_a_free_port() -> str:
    """Of the ports that jobs take; that of the process is another in every worker of pytest."""
    for job in range(os.getpid() % PORTS, PORTS):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", FIRST_PORT + job))
            return str(job)
    raise AssertionError("no port is free")


def _tasks(words: list[str]) -> list[subprocess.Popen[str]]:
    """Two, as srun starts them."""
    job = _job_with_a_free_port()
    variables = {
        "SLURM_JOB_ID": job, "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=ENVIRONMENT | variables | {"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)},
        )
        for n in range(2)
    ]  # fmt: skip


@pytest.mark.timeout(200)
def test_srun(two_ranks: str, losses: tuple[float, ...], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    tasks = _tasks(["run", two_ranks, "--steps", "3", "--report", str(report)])
    said = [task.communicate() for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert Report.load(report).losses == losses
    assert "3 steps on 2 ranks" in said[0][0]
    assert said[1][0] == "", "one tells"


@pytest.mark.timeout(200)
def test_torchrun(two_ranks: str, losses: tuple[float, ...], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tools.main", "run", two_ranks, "--steps", "3", "--report", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert Report.load(report).losses == losses
    assert done.stdout.count("3 steps on 2 ranks") == 1


@pytest.mark.timeout(200)
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_task_is_named_by_the_other(two_ranks: str, stopped: int) -> None:
    """There is no launcher of ours; where the stopped one is rank 0, it is the one that has the store."""
    tasks = _tasks(["run", two_ranks, "--steps", "1000000", "--patience", "0.1"])
    first = tasks[0].stderr
    assert first is not None
    for line in first:
        if line.startswith("step "):
            break
    time.sleep(1)
    tasks[stopped].send_signal(signal.SIGSTOP)
    other = tasks[1 - stopped]
    try:
        _, said = other.communicate(timeout=100)
    finally:
        for task in tasks:
            task.kill()
            task.communicate()  # which closes its pipes
    assert other.returncode == 75
    wanted = r"rank 1 does not answer" if stopped else r"the store at 127.0.0.1, in rank 0's process, does not answer"
    assert re.search(rf"hung: .* took more than [\d.]+ s: {wanted}", said), said
