"""The batch script that starts a run on the nodes of its plan, by srun."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence

from partitioner import Plan

SAVE_SECONDS = 300  # before the time is over SLURM asks the run to leave

SCRIPT = """#!/bin/bash
# sbatch takes this file; add what your cluster asks for: --partition, --account, --time
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={each}
#SBATCH --gpus-per-node={each}
#SBATCH --exclusive
#SBATCH --signal=TERM@{save}
#SBATCH --requeue
#SBATCH --open-mode=append

exec srun --kill-on-bad-exit=1 --distribution=block {command}
"""


def slurm_script(plan: Plan, words: Sequence[str]) -> str:
    """``words``: those of this command line, ``--slurm`` among them."""
    each = min(plan.world, plan.cluster["node_devices"])
    name = re.sub(r"\W+", "-", str(plan.model.get("entry", "run")).rpartition("/")[2])
    command = [sys.executable, "-P", "-m", "tools.main", *_without_itself(words)]
    return SCRIPT.format(
        name=name, nodes=-(-plan.world // each), each=each, save=SAVE_SECONDS, command=shlex.join(command)
    )  # fmt: skip


def _without_itself(words: Sequence[str]) -> list[str]:
    kept, skip = list[str](), False
    for word in words:
        if not skip and word != "--slurm" and not word.startswith("--slurm="):
            kept.append(word)
        skip = word == "--slurm"
    return kept
