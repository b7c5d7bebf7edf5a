"""Of ranks that hang the one at fault is named, never one that waits for it; all end in the time that was stated."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from runtime.ranks import launch
from runtime.ranks.doing import Doing
from runtime.ranks.hang import ANSWER_SECONDS, verdict
from runtime.ranks.launch import Result
from runtime.ranks.watchdog import HUNG_STATUS

ROOT = Path(__file__).resolve().parents[3]
WAITS, BUSY = Doing(True, "all_reduce (a.py:1)"), Doing(False, "load (b.py:2)")
LIMIT = 3.0
START = """
import os, pathlib, queue, signal, sys, threading, time
import torch, torch.distributed as dist
from runtime.ranks.process_group import start_ranks, saving_group
from runtime.ranks.watchdog import Watchdog
from runtime.mesh.axis import wait
rank = int(os.environ["RANK"])
start_ranks()
dist.all_reduce(torch.ones(1))
if rank == 1:
    (pathlib.Path(sys.argv[1]) / "at").write_text(str(time.time()))
"""
FAULTS = {
    "stopped": ("    os.kill(os.getpid(), signal.SIGSTOP)", r"it does not answer, stopped by a signal"),
    "busy in Python": ("    stands_still()", r"it is busy in stands_still \(rank.py:\d+\)"),
    "busy in the standard library": ("    queue.Queue().get()", r"it is busy in <module> \(rank.py:\d+\)"),
    "busy, another thread waiting": (
        "    threading.Thread(target=dist.barrier, args=(group,), daemon=True).start()\n    time.sleep(100)",
        r"it is busy in <module> \(rank.py:\d+\)",
    ),
}


def _run(script: str, folder: Path, ranks: int = 3) -> tuple[Result, float]:
    """Its end, and the seconds since the fault."""
    path = folder / "rank.py"
    path.write_text(script)
    result = launch.local([sys.executable, str(path), str(folder)], ranks, 100.0, {"PYTHONPATH": str(ROOT)})
    return result, time.time() - float((folder / "at").read_text())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_one_at_fault_is_named(fault: str, tmp_path: Path) -> None:
    happens, words = FAULTS[fault]
    script = START + (
        "group = saving_group()\ndef stands_still():\n    while True: pass\n"
        f"if rank == 1:\n{happens}\n"
        f"with Watchdog({LIMIT}, 'step 7'):\n    wait(dist.all_reduce(torch.ones(1), async_op=True))\n"
    )
    result, seconds = _run(script, tmp_path)
    assert re.fullmatch(rf"rank 1 failed: hung: step 7 took more than 3 s: {words}", str(result.failure))
    assert seconds < LIMIT + ANSWER_SECONDS + 8
    assert HUNG_STATUS in result.statuses
    assert "in wait" in result.stderr[0]


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "word",
    ["everywhere(rank)", "finish_ranks()",
     *(pytest.param(word, marks=pytest.mark.disturbed) for word in ("largest(1.0)", "all_here()"))],
)  # fmt: skip
def test_a_word_of_all_ranks_has_a_limit(word: str, tmp_path: Path) -> None:
    script = START.replace("start_ranks()\n", f"start_ranks({LIMIT})\n") + (
        "from runtime.ranks.process_group import all_here, everywhere, finish_ranks, largest\n"
        f"if rank == 1:\n    os.kill(os.getpid(), signal.SIGSTOP)\n{word}\n"
    )
    result, seconds = _run(script, tmp_path)
    wanted = "waiting for a word of every rank took more than 3 s: it does not answer, stopped by a signal"
    assert str(result.failure) == f"rank 1 failed: hung: {wanted}"
    assert seconds < LIMIT + ANSWER_SECONDS + 8


@pytest.mark.timeout(120)
def test_a_word_within_what_has_a_limit_may_take_as_long(tmp_path: Path) -> None:
    script = START.replace("start_ranks()\n", "start_ranks(1.0)\n") + (
        "from runtime.ranks.process_group import everywhere, finish_ranks\n"
        "with Watchdog(60.0, 'step 7'):\n"
        "    if rank == 1:\n        time.sleep(4.0)\n"
        "    everywhere(rank)\n"
        "finish_ranks()\n"
    )
    result, _ = _run(script, tmp_path, 2)
    assert result.statuses == (0, 0)


@pytest.mark.timeout(120)
def test_ranks_that_wait_for_one_another_are_all_named(tmp_path: Path) -> None:
    script = START + (
        f"with Watchdog({LIMIT}, 'step 7'):\n"
        "    dist.recv(torch.ones(1), 1 - rank)\n"
    )
    result, _ = _run(script, tmp_path, 2)
    wanted = r"all ranks wait for one another, 2 ranks from 0 on in recv \(rank.py:\d+\)"
    assert re.fullmatch(rf"hung: step 7 took more than 3 s: {wanted}", str(result.failure))


@pytest.mark.timeout(120)
def test_one_that_never_joins_is_named(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys, time\n"
        "from runtime.ranks.process_group import start_ranks\n"
        "if os.environ['RANK'] == '1':\n"
        "    (pathlib.Path(sys.argv[1]) / 'at').write_text(str(time.time()))\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "start_ranks(4.0)\n"
    )
    result, seconds = _run(script, tmp_path)
    wanted = "rank 1 failed: hung: joining the other ranks took more than 4 s: it does not answer, stopped by a signal"
    assert str(result.failure) == wanted
    assert seconds < 4 + ANSWER_SECONDS + 15


@pytest.mark.parametrize(
    ("rows", "rank", "reason"),
    [
        ({0: WAITS, 1: None, 2: WAITS}, 1, "does not answer"),
        ({0: BUSY, 1: None, 2: None, 3: WAITS}, 1, "does not answer, nor does rank 2"),
        ({0: WAITS, 1: WAITS, 2: BUSY}, 2, "is busy in load (b.py:2)"),
        ({0: WAITS, 1: BUSY, 2: BUSY}, 1, "is busy in load (b.py:2), as is rank 2"),
        ({0: BUSY, 1: BUSY}, None, "no rank waits for another, 2 ranks from 0 on in load (b.py:2): it may need longer"),
        ({0: WAITS, 1: WAITS}, None, "all ranks wait for one another, 2 ranks from 0 on in all_reduce (a.py:1)"),
    ],
)
def test_verdicts(rows: dict[int, Doing | None], rank: int | None, reason: str) -> None:
    found = verdict(rows)
    assert (found.rank, found.reason) == (rank, reason)


@pytest.mark.parametrize(
    ("silent", "hosts", "others", "lost"),
    [
        ((2, 3), "aabb", ", nor does rank 3", "b"),
        ((3,), "aabb", "", ""),
        ((1, 2, 3), "abbc", ", nor do ranks 2, 3", "b, c"),
        ((0, 1), "aa", ", nor does rank 1", ""),
    ],
)
def test_a_machine_that_is_gone_is_named(silent: tuple[int, ...], hosts: str, others: str, lost: str) -> None:
    rows = {rank: None if rank in silent else WAITS for rank in range(len(hosts))}
    found = verdict(rows, hosts=dict(enumerate(hosts)))
    where = f", no rank of {lost}: look at the machine and the network to it" if lost else ""
    assert (found.rank, found.reason) == (silent[0], f"does not answer{others}{where}")


def test_of_those_that_say_nothing_one_that_is_stopped_is_to_blame() -> None:
    found = verdict({0: WAITS, 1: None, 2: None}, {2: "stopped by a signal"})
    assert (found.rank, found.reason) == (2, "does not answer, stopped by a signal, nor does rank 1")
