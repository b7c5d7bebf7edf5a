"""Ranks that die, raise, hang or outlive their launcher: all are stopped in time, and the first cause is named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from partitioner.errors import InputError
from runtime.ranks import launch
from runtime.ranks.first_failure import Ended, first_cause, reason
from runtime.ranks.launch import Result
from runtime.ranks.limits import Limits
from runtime.ranks.watchdog import HUNG_STATUS

ROOT = Path(__file__).resolve().parents[3]
REDUCE = """
import os, pathlib, signal, sys, time
import torch, torch.distributed as dist
from datetime import timedelta
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
(pathlib.Path(sys.argv[1]) / str(rank)).write_text(str(os.getpid()))
dist.all_reduce(torch.ones(1))
"""


def _run(script: str, folder: Path, ranks: int = 3, timeout_seconds: float = 60.0) -> Result:
    path = folder / "rank.py"
    path.write_text(script)
    return launch.local(
        [sys.executable, str(path), str(folder)], ranks, timeout_seconds, {"PYTHONPATH": str(ROOT)}
    )


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _left(folder: Path) -> list[str]:
    """Processes that live on; one that was killed takes the kernel a moment on a busy machine."""
    files = [f for f in folder.iterdir() if f.suffix == ""]

    def alive() -> list[str]:
        return [f.name for f in files if _alive(int(f.read_text()))]

    _wait_until(lambda: not alive(), 5.0)
    return alive()


def _wait_until(condition: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.05)


@pytest.mark.timeout(120)
def test_a_killed_rank_stops_the_others_blocked_in_a_collective(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = REDUCE + (
        "if rank == 1:\n    time.sleep(1)\n"
        "    (pathlib.Path(sys.argv[1]) / 'killed.at').write_text(str(time.time()))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "dist.all_reduce(torch.ones(1))\n"
    )
    result = _run(script, tmp_path)
    assert time.time() - float((tmp_path / "killed.at").read_text()) < 10
    assert result.statuses[1] == -signal.SIGKILL
    assert str(result.failure) == "rank 1 failed: killed by SIGKILL"
    assert capfd.readouterr().err == "rank 1 failed: killed by SIGKILL\n"
    assert sorted(f.name for f in tmp_path.iterdir() if f.suffix == "") == ["0", "1", "2"]
    assert _left(tmp_path) == []


@pytest.mark.timeout(120)
def test_a_kill_is_noticed_when_the_others_cannot_notice_it(tmp_path: Path) -> None:
    """No connection is lost here: the others sleep and ignore SIGTERM, and each has a child."""
    script = """
import os, pathlib, signal, subprocess, sys, time
folder, rank = pathlib.Path(sys.argv[1]), int(os.environ["RANK"])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "100"])
(folder / str(rank)).write_text(str(os.getpid()))
(folder / f"child{rank}").write_text(str(child.pid))
while rank == 2 and len(list(folder.glob("child*"))) < 3:
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL) if rank == 2 else time.sleep(100)
"""
    result = _run(script, tmp_path)
    assert str(result.failure) == "rank 2 failed: killed by SIGKILL"
    assert result.seconds < 10
    assert result.statuses == (-signal.SIGKILL,) * 3
    assert len(list(tmp_path.glob("child*"))) == 3
    assert _left(tmp_path) == []


@pytest.mark.timeout(120)
def test_an_exception_is_the_cause_and_lost_connections_are_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = REDUCE + (
        "if rank == 2:\n    try:\n        raise ValueError('the loss is NaN')\n"
        "    finally:\n        dist.destroy_process_group()\n        time.sleep(1)\n"
        "dist.all_reduce(torch.ones(1))\n"
    )
    result = _run(script, tmp_path)
    assert str(result.failure) == "rank 2 failed: ValueError: the loss is NaN"
    assert capfd.readouterr().err == "rank 2 failed: ValueError: the loss is NaN\n"
    assert "Traceback" in result.stderr[2]
    assert _left(tmp_path) == []


@pytest.mark.timeout(120)
def test_a_hang_is_detected_with_the_stacks_of_all_ranks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = REDUCE + (
        "from runtime.ranks.watchdog import Watchdog\n"
        "def stands_still():\n    time.sleep(100)\n"
        "with Watchdog(2.0 if rank else 2.5, 'step 7'):\n"
        "    stands_still() if rank == 0 else dist.all_reduce(torch.ones(1))\n"
    )
    result = _run(script, tmp_path)
    said = r"rank 0 failed: hung: step 7 took more than 2(.5)? s: it is busy in stands_still \(rank.py:\d+\)"
    assert re.fullmatch(said, str(result.failure))
    assert HUNG_STATUS in result.statuses
    printed = capfd.readouterr().err
    assert "in stands_still" in result.stderr[0]
    assert "in all_reduce" in result.stderr[1]
    assert "in all_reduce" in result.stderr[2]
    assert "in stands_still" in printed
    assert printed.endswith(f"{result.failure}\n")
    assert _left(tmp_path) == []


@pytest.mark.timeout(120)
def test_a_watchdog_lets_a_fast_step_pass(tmp_path: Path) -> None:
    script = """
import time
from runtime.ranks.watchdog import Watchdog
for step in range(3):
    with Watchdog(0.5, f"step {step}"):
        time.sleep(0.01)
time.sleep(1)
"""
    assert _run(script, tmp_path, 1).statuses == (0,)


@pytest.mark.timeout(120)
def test_the_whole_run_has_a_time_limit_and_leaves_stacks(tmp_path: Path) -> None:
    script = """
import os, pathlib, sys, time
from runtime.ranks.watchdog import answer_stack_signal
answer_stack_signal()
(pathlib.Path(sys.argv[1]) / os.environ["RANK"]).write_text(str(os.getpid()))
def waits_for_ever():
    time.sleep(100)
waits_for_ever()
"""
    result = _run(script, tmp_path, 2, timeout_seconds=15)
    assert str(result.failure) == "timed out after 15 s"
    assert all("in waits_for_ever" in text for text in result.stderr)
    assert _left(tmp_path) == []


@pytest.mark.timeout(120)
def test_rank_0_is_heard_and_all_get_their_place(tmp_path: Path) -> None:
    script = """
import os, pathlib, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME")
print(*(os.environ[name] for name in names))
print("to nobody", file=sys.stderr)
"""
    heard: list[str] = []
    path = tmp_path / "rank.py"
    path.write_text(script)
    result = launch.local([sys.executable, str(path)], 3, 60, {"OMP_NUM_THREADS": "2"}, heard.append)
    assert heard == ["0 0 3 127.0.0.1 2 lo\n"]
    assert result.failure is None
    assert result.statuses == (0, 0, 0)
    assert result.stderr == ("to nobody\n",) * 3


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("happens", "why"),
    [("os.kill(os.getpid(), signal.SIGSTOP)", "it does not answer, stopped by a signal"),
     ("time.sleep(50)", "it has not ended")],
)  # fmt: skip
def test_one_that_does_not_end_when_others_have_is_named(happens: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "rank.py"
    path.write_text(f"import os, signal, time\nif os.environ['RANK'] == '1':\n    {happens}\n")
    result = launch.local([sys.executable, str(path)], 3, 100, end_seconds=2.0)
    assert str(result.failure) == f"rank 1 failed: hung: the end took more than 2 s longer than other ranks': {why}"
    assert result.statuses[1] != 0
    assert result.seconds < 20


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_the_launcher_stops_all_ranks(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "rank.py"
    path.write_text(
        "import os, pathlib, sys, time\n"
        "(pathlib.Path(sys.argv[1]) / os.environ['RANK']).write_text(str(os.getpid()))\ntime.sleep(100)\n"
    )
    program = (
        "import signal\nfrom runtime.ranks import launch\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs start with it ignored
        f"launch.local({[sys.executable, str(path), str(tmp_path)]!r}, 2, 100)"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _wait_until(lambda: all((tmp_path / r).is_file() and (tmp_path / r).read_text() for r in "01"), 30)
    launcher.send_signal(number)
    _, errors = launcher.communicate(timeout=20)
    assert launcher.returncode != 0
    assert b"failed" not in errors
    assert sorted(f.name for f in tmp_path.iterdir() if f.suffix == "") == ["0", "1"]
    assert _left(tmp_path) == []


def test_a_missing_command_is_bad_input() -> None:
    with pytest.raises(InputError, match="no-such-command"):
        launch.local(["no-such-command"], 2, 10)


TRACE = "Traceback (most recent call last):\n  File 'x', line 1, in f\n    f()\n"


@pytest.mark.parametrize(
    ("status", "stderr", "line"),
    [
        (-9, "", "killed by SIGKILL"),
        (1, TRACE + "RuntimeError: a\nb\nWARNING: late\n", "RuntimeError: a"),
        (1, "[rank3]: " + TRACE.replace("\n", "\n[rank3]: ") + "KeyError: 'x'\n", "KeyError: 'x'"),
        (2, "partitioner: no such file\n", "no such file"),
        (3, "usage: wrong\n", "status 3: usage: wrong"),
        (5, "", "status 5"),
        (HUNG_STATUS, "Thread 1:\n  File x\nhung: s took more than 2 s\n", "hung: s took more than 2 s"),
    ],
)
def test_the_reason_is_one_line(status: int, stderr: str, line: str) -> None:
    assert reason(Ended(0, status, 0.0, stderr)) == line


def test_an_echo_is_blamed_only_when_alone() -> None:
    echo = Ended(0, 1, 1.0, TRACE + "RuntimeError: [pair.cc:547] Connection closed by peer [127.0.0.1]:1\n")
    cause = Ended(1, 1, 2.0, TRACE + "ZeroDivisionError: division by zero\n")
    assert first_cause([echo, cause]).rank == 1
    assert first_cause([echo]).echo
    assert first_cause([cause, Ended(2, 1, 1.5, TRACE + "ValueError: earlier\n")]).rank == 2


def test_a_hang_is_far_above_the_prediction() -> None:
    assert Limits(100.0).step == 500.0
    assert Limits(1.0).step == 60.0
    assert Limits(1.0).first_step > 2 * Limits(1.0).step
    assert Limits(1.0, patience=0.5).start == Limits(1.0).start / 2
    assert Limits(1.0).state(200e9) > 10_000 > Limits(1.0).state(1e9)
