"""Learning rates by schedule, scheduler and hand, also from a checkpoint; which optimizers may be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import plans
import pytest
import small
import torch
from small_engine import CLIP, RATE, build, close, local, samples
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from partitioner.errors import InputError
from partitioner.lowering.program import Program
from runtime import parameter_groups
from runtime.state.learning_rates import base_rate, step_rate, warmup_cosine
from runtime.state.optimizer import Named, factory, hyper_parameters, restored
from runtime.train.engine import Engine


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
    optimizer = factory(torch.optim.SGD, lr=0.5)([("w", weight)])
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.tolist() == [0.5] * 3


class Own(torch.optim.AdamW):
    """A subclass, with another default."""

    def __init__(self, params: Any, lr: float = 0.25, **options: Any) -> None:
        super().__init__(params, lr, **options)


def test_classes_partials_and_functions_make_optimizers() -> None:
    named = [("a.weight", nn.Parameter(torch.ones(3, 3))), ("a.bias", nn.Parameter(torch.ones(3)))]
    own = factory(Own)(named)
    assert (type(own), own.param_groups[0]["lr"]) == (Own, 0.25)
    part = factory(partial(torch.optim.AdamW, betas=(0.5, 0.25)), lr=0.125)(named)
    assert (part.param_groups[0]["betas"], part.param_groups[0]["lr"]) == ((0.5, 0.25), 0.125)
    assert part.param_groups[0]["fused"]
    assert not factory(partial(torch.optim.AdamW, foreach=True))(named).param_groups[0]["fused"]
    (one, _) = parameter_groups(named, 0.5, rates={"*": 0.1})
    assert (one["lr"], len(one["params"])) == (0.05, sum(p.dim() > 1 for _, p in named))
    grouped = factory(lambda rows: torch.optim.AdamW(parameter_groups(rows, 0.5, 0.25, {"*.bias": 0.5})))(named)
    rows = [(len(g["params"]), g["lr"], g["weight_decay"]) for g in grouped.param_groups]
    assert rows == [(0, 0.25, 0.25), (1, 0.25, 0.0), (1, 0.5, 0.25), (0, 0.5, 0.0)]
    with pytest.raises(InputError, match="lr: give options to the optimizer in your function"):
        factory(lambda rows: own, lr=1.0)


def test_hyper_parameters_come_back_as_their_own_kinds() -> None:
    weight = [nn.Parameter(torch.ones(3))]
    before = torch.optim.AdamW(weight, lr=torch.tensor(0.5), betas=(0.5, 0.25), weight_decay=0.75)
    saved = json.loads(json.dumps(hyper_parameters(before)))
    after = torch.optim.AdamW(weight, lr=torch.tensor(0.125), foreach=False)
    group = restored(after.state_dict()["param_groups"][0], saved[0])
    assert isinstance(group["lr"], torch.Tensor)
    assert (float(group["lr"]), group["betas"], group["weight_decay"]) == (0.5, (0.5, 0.25), 0.75)
    assert group["foreach"] is False, "which kernel updates is not restored"


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "by a factor": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "step by step": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 4 * RATE, total_steps=8),
}


def _trained(
    program: Program, engine: Engine, change: Callable[[int], object], steps: int = 4
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The rate of each step and the parameters after them; ``change`` comes after a step."""
    data, found = small.batch(samples(program)), list[float]()
    for step in range(steps):
        engine.step(local(program, engine, data))
        found.append(engine.optimizer.param_groups[0]["lr"])
        change(step)
    return found, {name: p.detach().clone() for name, p in engine.parameters.items()}


def _plainly(program: Program, steps: int, make: Callable[[torch.optim.Optimizer], Any]) -> tuple[list[float], Any]:
    """The same of torch alone; ``make`` gives what is called after each step."""
    plain = {n: t.requires_grad_() for n, t in small.weights().items()}
    optimizer, found = torch.optim.AdamW(plain.values(), lr=RATE), list[float]()
    after, data = make(optimizer), small.batch(samples(program))
    for step in range(steps):
        optimizer.zero_grad()
        small.reference(plain, data, step, small.DROP).backward()
        torch.nn.utils.clip_grad_norm_(plain.values(), CLIP)
        optimizer.step()
        found.append(optimizer.param_groups[0]["lr"])
        after(step)
    return found, plain


def _compare(engine: Engine, found: tuple[list[float], Any], wanted: tuple[list[float], Any]) -> None:
    assert found[0] == wanted[0]
    for name, parameter in engine.parameters.items():
        close(parameter.detach(), wanted[1][name].detach(), name)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_torch_rules(name: str) -> None:
    program, make = small.program(), SCHEDULERS[name]
    engine = build(program)
    mine = make(engine.optimizer)

    def plain(optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
        scheduler = make(optimizer)
        return lambda step: scheduler.step()

    _compare(engine, _trained(program, engine, lambda step: mine.step()), _plainly(program, 4, plain))


def test_a_rate_changed_by_hand_rules() -> None:
    program = small.program()
    engine = build(program)

    def by_hand(optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
        return lambda step: optimizer.param_groups[0].update(lr=RATE / (step + 2), weight_decay=0.5)

    _compare(engine, _trained(program, engine, by_hand(engine.optimizer)), _plainly(program, 4, by_hand))


def test_a_schedule_and_a_scheduler_are_refused_together() -> None:
    program = small.program()
    engine = build(program, lr_lambda=warmup_cosine(2, 10))
    mine = lr_scheduler.ExponentialLR(engine.optimizer, 0.5)
    with pytest.raises(InputError, match="step 1: the optimizer's learning rate was changed, by a scheduler"):
        _trained(program, engine, lambda step: mine.step())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    program, make = small.program(), SCHEDULERS[name]
    engine = build(program)
    mine = make(engine.optimizer)
    whole = _trained(program, engine, lambda step: mine.step(), 6)
    first = build(program)
    theirs = make(first.optimizer)
    before, _ = _trained(program, first, lambda step: theirs.step(), 3)
    first.save(tmp_path)
    again = build(program)
    ours = make(again.optimizer)
    again.load(tmp_path)
    ours.load_state_dict(theirs.state_dict())
    after, parameters = _trained(program, again, lambda step: ours.step(), 3)
    assert before + after == whole[0]
    assert all(torch.equal(p, whole[1][n]) for n, p in parameters.items())


def test_a_schedule_goes_on_from_a_checkpoint_whatever_the_new_rate(tmp_path: Path) -> None:
    program, rate = small.program(), warmup_cosine(2, 8)
    whole = _trained(program, build(program, lr_lambda=rate), lambda step: None, 6)
    first = build(program, lr_lambda=rate)
    _trained(program, first, lambda step: None, 3)
    first.save(tmp_path)
    again = build(program, lr_lambda=rate)
    again.optimizer = factory(torch.optim.AdamW, lr=7.0, weight_decay=0.9)(
        [(n, p) for n, p in again.parameters.items() if p.requires_grad]
    )
    again.load(tmp_path)
    after, parameters = _trained(program, again, lambda step: None, 3)
    assert after == whole[0][3:]
    assert all(torch.equal(p, whole[1][n]) for n, p in parameters.items())
    again.load(tmp_path, lr=10 * RATE)
    assert _trained(program, again, lambda step: None, 3)[0] == pytest.approx([10 * r for r in after])


def test_groups_keep_their_factors_under_a_new_rate(tmp_path: Path) -> None:
    program = small.program()

    def grouped(named: Named) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(named, RATE, 0.3, {"embed*": 0.5}))

    first = build(program, optimizer=grouped)
    first.save(tmp_path)
    again = build(program, optimizer=grouped)
    again.load(tmp_path, lr=8.0)
    assert [group["lr"] for group in again.optimizer.param_groups] == [4.0, 4.0, 8.0, 8.0]
    assert base_rate(again.optimizer) == step_rate(again.optimizer) == 8.0
    again.load(tmp_path)
    assert [group["lr"] for group in again.optimizer.param_groups] == [RATE / 2, RATE / 2, RATE, RATE]

    def otherwise(named: Named) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(named, RATE, 0.1, {"embed*": 4.0}))

    other = build(program, optimizer=otherwise)
    other.load(tmp_path)
    assert [group["weight_decay"] for group in other.optimizer.param_groups] == [0.3, 0.0, 0.3, 0.0], "as was saved"
    other = build(program, optimizer=otherwise)
    other.load(tmp_path, lr=2.0, own=("weight_decay", "lr_factor"))
    assert [group["weight_decay"] for group in other.optimizer.param_groups] == [0.1, 0.0, 0.1, 0.0]
    assert [group["lr"] for group in other.optimizer.param_groups] == [8.0, 8.0, 2.0, 2.0]


def test_a_checkpoint_of_other_groups_is_refused(tmp_path: Path) -> None:
    program = small.program()
    engine = build(program)
    engine.save(tmp_path)
    (first, *rest), again = engine.trained, build(program)
    again.optimizer = torch.optim.AdamW([{"params": [first]}, {"params": rest}])
    with pytest.raises(InputError, match="holds 1 groups of parameters, not 2"):
        again.load(tmp_path)


def _without_parameters(rank: int) -> None:
    """The first stage of two trains nothing."""
    program = small.program(pp=2)
    frozen = {n: replace(p, requires_grad=bool(p.stages[0])) for n, p in program.parameters.items()}
    engine = build(replace(program, parameters=frozen))
    assert bool(engine.trained) == bool(rank)
    assert lr_scheduler.ExponentialLR(engine.optimizer, 0.5).get_last_lr() == [RATE]


def test_every_rank_has_an_optimizer_to_give_to_a_scheduler() -> None:
    plans.spawn(_without_parameters, 2)
