"""A scale grows after many finite steps and halves after one that is not; that one updates nothing and is counted."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from examples.gpt import model
from partitioner import Cluster, lower, search, trace
from partitioner.errors import InputError
from partitioner.precision import PRESETS
from runtime.mesh.groups import Groups
from runtime.state.optimizer import factory
from runtime.state.parameters import materialize
from runtime.train import loss_scale
from runtime.train.engine import Engine
from runtime.train.loss_scale import LossScale

PEAK = {"float16": 1e9}


@functools.cache
def engine() -> Engine:
    module, batch = model(layers=2, vocab=32, hidden=16, heads=2, seq=8)
    graph = trace(module, batch, precision=PRESETS["fp16"])
    cluster = Cluster.load("dgx-a100", devices=1)
    program = lower(graph, search(graph, cluster, 4, {"micro_batch": 2}))
    groups = Groups(program)
    parameters = materialize(program, groups.coordinates, module, "cpu")
    return Engine(program, groups, parameters, factory(torch.optim.AdamW, lr=1e-2), clip=1.0)


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(32, (4, 8), generator=torch.Generator().manual_seed(3))
    return {"tokens": tokens, "labels": tokens}


def test_it_grows_and_halves_as_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "INTERVAL", 3)
    ours, theirs = LossScale(), GradScaler("cpu", growth_interval=3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for grad in (1.0, 1.0, float("inf"), 1.0, 1.0, 1.0, float("nan"), 1.0, 1.0, 1.0, 1.0):
        theirs.scale(parameter.sum()).backward()
        parameter.grad = torch.tensor([grad])
        theirs.step(optimizer)
        theirs.update()
        ours.update(grad == 1.0)
        assert ours.value == theirs.get_scale()
    assert ours.skipped == 2


def test_a_step_that_overflows_updates_nothing_and_is_counted() -> None:
    trained = engine()
    trained.loss_scale = LossScale(2.0**40)  # beyond what float16 holds
    before = {n: p.detach().clone() for n, p in trained.parameters.items()}
    trained.step(batch())
    assert (trained.loss_scale.value, trained.loss_scale.skipped, trained.steps_done) == (2.0**39, 1, 1)
    assert all(torch.equal(before[n], p) for n, p in trained.parameters.items())
    assert not trained.optimizer.state
    trained.loss_scale = LossScale(2.0**10, skipped=1)
    trained.step(batch())
    assert trained.loss_scale == LossScale(2.0**10, good=1, skipped=1)
    assert not all(torch.equal(before[n], p) for n, p in trained.parameters.items())


def test_where_no_scale_helps_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = engine()
    trained.loss_scale = LossScale()
    monkeypatch.setattr(trained, "_norm", lambda: torch.tensor(float("nan")))
    for _ in range(30):
        trained.step(batch())
    with pytest.raises(InputError, match="not finite at a loss scale of 6.1.*, after 30 skipped steps: plan with"):
        trained.step(batch())


def test_gradients_and_their_norm_are_those_without_a_scale() -> None:
    trained = engine()
    found = {}
    for value in (1.0, 2.0**12):
        trained.loss_scale = LossScale(value)
        trained.gradients(batch())
        found[value] = {n: p.grad.clone() for n, p in trained.parameters.items() if p.grad is not None}
    assert found[1.0].keys() == found[2.0**12].keys() != set()
    for name, grad in found[1.0].items():
        assert grad.dtype == torch.float32
        assert torch.allclose(grad, found[2.0**12][name], rtol=0.1, atol=1e-3), name
    trained.step(batch())
    assert trained.grad_norm is not None
    plain = torch.stack([g.norm() for g in found[2.0**12].values()]).norm()
    assert float(trained.grad_norm) == pytest.approx(float(plain), rel=0.3)


def test_a_checkpoint_keeps_it(tmp_path: object) -> None:
    trained = engine()
    trained.loss_scale = LossScale(2.0**9, good=7, skipped=3)
    folder = trained.save(str(tmp_path))
    trained.loss_scale = LossScale()
    trained.load(folder)
    assert trained.loss_scale == LossScale(2.0**9, good=7, skipped=3)
