"""What is watched ends its process by the limit that is over first, and costs no thread of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.ranks.watchdog import HUNG_STATUS, Watchdog

ROOT = Path(__file__).resolve().parents[3]
START = "import os, time\nfrom runtime.ranks.watchdog import Watchdog\n"
HUNG = {
    "the inner": "with Watchdog(60, 'outer'), Watchdog(0.5, 'inner'):\n    time.sleep(30)\n",
    "the outer": "with Watchdog(0.5, 'outer'), Watchdog(60, 'inner'):\n    time.sleep(30)\n",
    "one after others": "for n in range(50):\n    with Watchdog(60 - n, 'before'):\n        pass\n"
    "with Watchdog(0.5, 'after'):\n    time.sleep(30)\n",
    "one that begins as others do": "time.sleep(0.5)\nfor n in range(3):\n    with Watchdog(0.5, 'same'):\n"
    "        time.sleep(0.3 if n < 2 else 30)\n",
    "one in a forked process": "with Watchdog(60, 'parent'):\n    if child := os.fork():\n"
    "        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    "    with Watchdog(0.5, 'child'):\n        time.sleep(30)\n",
}


@pytest.mark.parametrize("script", HUNG.values(), ids=list(HUNG))
def test_the_limit_that_is_over_first_ends_it(script: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", START + script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert ended.returncode == HUNG_STATUS, ended.stderr
    assert "took more than 0.5 s" in ended.stderr


def test_many_that_are_in_time_start_no_threads() -> None:
    with Watchdog(60.0, "the first"):
        before = threading.active_count()
        for n in range(100):
            with Watchdog(60.0, f"step {n}"):
                assert threading.active_count() == before
