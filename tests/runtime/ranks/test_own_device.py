"""A rank starts on its own accelerator, tested without one: what torch is asked for is noted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from partitioner.errors import InputError
from runtime.ranks import meeting_store, process_group
from runtime.ranks.own_device import all_backends, backend_of, own_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with eight GPUs."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: CUDA)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)


def test_without_one_it_is_the_cpu() -> None:
    assert own_device() == CPU
    assert all_backends(CPU) == backend_of(CPU) == "gloo"


@pytest.mark.usefixtures("eight")
def test_one_process_takes_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "8")
    with pytest.raises(InputError, match="rank 8 of this machine finds 8 accelerators: start one rank for each"):
        own_device()


@pytest.mark.usefixtures("eight")
def test_a_rank_is_bound_before_any_communicator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dict[str, Any]()
    for name, value in {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(meeting_store, "join", lambda _: "store")
    monkeypatch.setattr(process_group, "answer_when_asked", lambda: None)
    monkeypatch.setattr(process_group, "answer_stack_signal", lambda: None)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: asked.update(bound=device))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **given: asked.update(given, backend=backend))
    process_group.start_ranks()
    device = torch.device("cuda", 3)
    assert asked.pop("timeout") == process_group.TIMEOUT
    assert asked == {
        "bound": device, "backend": "cpu:gloo,cuda:nccl", "device_id": device, "store": "store", "rank": 11,
        "world_size": 16,
    }  # fmt: skip
