"""A long run that is killed again and again, and ends where one that is not ends, bit for bit.

python -m tools.faults.long_run [--steps 2000 --save-every 100 --kill-every 300]

In bfloat16 with float32 masters, ZeRO 1. The exit status is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runtime.checkpoint import step_folders
from tools.faults.disturbed_run import Running
from tools.faults.trials import MODEL, SMALL, Campaign
from tools.main import main as partitioner
from tools.screen import output

RANKS = 2
PLACE = ("--cluster", "local-cpu", "--devices", str(RANKS), "--global-batch", "8", "--precision", "bf16")
PINS = ("--pin", f"dp={RANKS}", "--pin", "zero=1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both and print a line."""
    parser = argparse.ArgumentParser(prog="python -m tools.faults.long_run", description=__doc__)
    for name, default in (("steps", 2000), ("save-every", 100), ("kill-every", 300), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        plan, draw = Path(place) / "plan.json", random.Random(options.seed)
        if partitioner(["plan", MODEL, *SMALL, *PLACE, *PINS, "-o", str(plan)]):
            return 1
        trial = Campaign(Path(place), draw, plan, options.steps, options.save_every)
        trial.begin()
        kills = [_killed(trial, step) for step in range(options.kill_every, options.steps, options.kill_every)]
        trial.resume("the last part", trial.folder / "killed")
    verdict = "differs" if trial.misses else "ends bit-equal to the undisturbed run"
    output().print(
        f"{options.steps} steps on {RANKS} ranks in bf16 with float32 masters, ZeRO 1, saved every "
        f"{options.save_every} steps, killed {len(kills)} times at {', '.join(map(str, kills))}: {verdict}"
    )
    return 1 if trial.misses else 0


def _killed(trial: Campaign, step: int) -> int:
    """Go on until a checkpoint of ``step`` is there, and kill a rank; the step of the newest that is left."""
    folder = trial.folder / "killed"
    run, reached = Running(trial.words(folder)), step_folders.named(folder, step)
    rank = trial.draw.randrange(RANKS)
    if not run.wait_until(lambda run: reached.is_dir() and rank in run.ranks()):
        trial.miss(f"until step {step}", "it ended by itself", run.end())
        return step
    subprocess.run(["kill", "-9", str(run.ranks()[rank])], check=False)
    outcome = run.end()
    if f"rank {rank} failed: killed by SIGKILL" not in outcome.said:
        trial.miss(f"the kill at step {step}", f"nothing was said of rank {rank}", outcome)
    return max(int(path.name.removeprefix("step-")) for path in step_folders.found(folder))


if __name__ == "__main__":
    sys.exit(main())
