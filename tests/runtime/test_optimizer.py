"""Learning-rate schedules at their corners, and which optimizers may update parts."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from partitioner.errors import InputError
from runtime.optimizer import factory, hyper_parameters, restored, warmup_cosine


def test_schedules() -> None:
    rate = warmup_cosine(4, 12, floor=0.1)
    assert [rate(s) for s in (0, 1, 3, 4)] == [0.25, 0.5, 1.0, 1.0]
    assert rate(8) == pytest.approx(0.55)
    assert [rate(s) for s in (12, 100)] == pytest.approx([0.1, 0.1])
    assert warmup_cosine(0, 2)(0) == 1.0
    with pytest.raises(InputError, match="warms up for 5 of 5 steps"):
        warmup_cosine(5, 5)


def test_factory() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = factory(torch.optim.SGD, lr=0.5)([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.tolist() == [0.5] * 3
    with pytest.raises(InputError, match="LBFGS needs whole parameters"):
        factory(torch.optim.LBFGS)


def test_hyper_parameters_come_back_as_their_own_kinds() -> None:
    weight = [nn.Parameter(torch.ones(3))]
    before = torch.optim.AdamW(weight, lr=torch.tensor(0.5), betas=(0.5, 0.25), weight_decay=0.75)
    saved = json.loads(json.dumps(hyper_parameters(before)))
    after = torch.optim.AdamW(weight, lr=torch.tensor(0.125), foreach=False)
    group = restored(after.state_dict()["param_groups"][0], saved[0])
    assert isinstance(group["lr"], torch.Tensor)
    assert (float(group["lr"]), group["betas"], group["weight_decay"]) == (0.5, (0.5, 0.25), 0.75)
    assert group["foreach"] is False, "which kernel updates is not restored"
