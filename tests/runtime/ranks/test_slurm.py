"""srun's variables say what torchrun's would; a batch script is no task."""

from __future__ import annotations

import pytest

from partitioner.errors import InputError
from runtime.ranks.slurm import first_host, is_task, tell_place

TASK = {
    "SLURM_JOB_ID": "4242424", "SLURM_NTASKS": "32", "SLURM_PROCID": "19", "SLURM_LOCALID": "3",
    "SLURM_STEP_NUM_TASKS": "32", "SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_STEP_NODELIST": "gpu[007-009,012]",
}  # fmt: skip


def test_a_task_knows_its_place() -> None:
    variables = dict(TASK)
    tell_place(variables)
    assert {name: value for name, value in variables.items() if name not in TASK} == {
        "RANK": "19", "WORLD_SIZE": "32", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "gpu007",
        "MASTER_PORT": str(20_000 + 4242424 % 12_000),
    }  # fmt: skip
    given = TASK | {"MASTER_ADDR": "there", "MASTER_PORT": "7"}
    tell_place(given)
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("there", "7")


def test_unequal_nodes_are_refused() -> None:
    with pytest.raises(InputError, match=r"starts 8\(x3\),4 tasks on the nodes: start as many on each"):
        tell_place(TASK | {"SLURM_STEP_TASKS_PER_NODE": "8(x3),4"})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"), ("node[3,5]", "node3"), ("node[03-07,12],other1", "node03"), ("a1,b2", "a1"),
        ("rack[1-4]-n", "rack1-n"), ("gpu-dy-p5-[1-8]", "gpu-dy-p5-1"),
    ],
)  # fmt: skip
def test_the_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_a_batch_script_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "32", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    assert not is_task()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "32")
    assert is_task()
