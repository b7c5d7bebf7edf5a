"""What srun tells a task of its place, in the variables by which torchrun tells a rank of its.

    SLURM_PROCID  SLURM_STEP_NUM_TASKS  SLURM_LOCALID  SLURM_STEP_TASKS_PER_NODE  SLURM_STEP_NODELIST, SLURM_JOB_ID
    RANK          WORLD_SIZE            LOCAL_RANK     LOCAL_WORLD_SIZE           MASTER_ADDR, MASTER_PORT

A batch script has an allocation's variables and is no task: srun alone says SLURM_STEP_NUM_TASKS.
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

from partitioner.errors import InputError

FIRST_PORT, PORTS = 20_000, 12_000  # below those that Linux gives away by itself
_FIRST_HOST = re.compile(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^\[,]*))?")
_EACH = re.compile(r"(\d+)(?:\(x\d+\))?$")


def is_task() -> bool:
    """Whether srun started this process, as one of several."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


def tell_place(variables: MutableMapping[str, str]) -> None:
    """Add torchrun's variables to srun's; those that are there already stay. Raises InputError for unequal nodes."""
    found = {
        "RANK": variables["SLURM_PROCID"],
        "WORLD_SIZE": variables["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": variables.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": _each_node(variables.get("SLURM_STEP_TASKS_PER_NODE", variables["SLURM_STEP_NUM_TASKS"])),
        "MASTER_ADDR": first_host(variables.get("SLURM_STEP_NODELIST", "127.0.0.1")),
        "MASTER_PORT": str(FIRST_PORT + int(variables.get("SLURM_JOB_ID", "0")) % PORTS),
    }
    for name, value in found.items():
        variables.setdefault(name, value)


def first_host(hosts: str) -> str:
    """``node[03-07,12]`` --> ``node03``."""
    found = _FIRST_HOST.match(hosts)
    if found is None:
        raise InputError(f"SLURM_STEP_NODELIST {hosts!r} names no host")
    return "".join(part or "" for part in found.groups())


def _each_node(tasks: str) -> str:
    """``8(x4)`` --> ``8``."""
    found = _EACH.match(tasks)
    if found is None:
        raise InputError(f"srun starts {tasks} tasks on the nodes: start as many on each, by --ntasks-per-node")
    return found[1]
