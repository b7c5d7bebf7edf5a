"""Every mesh and schedule trains the small model as plain torch does in one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plans
import pytest
import small
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from partitioner.errors import InputError
from partitioner.program import Parameter, Program
from runtime.engine import Engine
from runtime.groups import Groups
from runtime.optimizer import factory, warmup_cosine
from runtime.parameters import gather, materialize
from runtime.pieces import Part, cut

STEPS, RATE, CLIP = 3, 0.05, 0.5


def build(program: Program, clip: float | None = CLIP, **options: Any) -> Engine:
    """An engine of this rank on the small model's weights."""
    full = small.weights()

    def read(parameter: Parameter, part: Part) -> torch.Tensor:
        return cut(full[parameter.name], part)

    groups = Groups(program)
    parameters = materialize(program, groups.coordinates, read, "cpu")
    return Engine(program, groups, parameters, factory(torch.optim.AdamW, lr=RATE), clip, **options)


def local(program: Program, engine: Engine, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This data rank's part of a global batch."""
    n = program.micro_batch * program.micro_batches
    r = engine.groups.coordinates["dp"]
    return {name: t[r * n : (r + 1) * n] for name, t in data.items()}


def samples(program: Program) -> int:
    """Samples of the global batch."""
    return program.micro_batch * program.micro_batches * program.mesh["dp"]


def check(options: dict[str, Any]) -> None:
    """Loss, gradients, norm, and parameters after some steps of AdamW, against the plain model."""
    program = small.program(**options)
    engine = build(program)
    data, drop = small.batch(samples(program)), options.get("drop", small.DROP)
    plain = {n: t.requires_grad_() for n, t in small.weights().items()}
    optimizer = torch.optim.AdamW(plain.values(), lr=RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        expected = small.reference(plain, data, step, drop)
        expected.backward()
        loss = engine.gradients(local(program, engine, data))
        close(loss, expected.detach(), "loss")
        for name, parameter in plain.items():
            held = engine.parameters.get(name)
            full = gather(program, engine.groups, name, held.grad if held is not None else None)
            close(full, parameter.grad, f"gradient of {name} at step {step}")
        loss = engine.step(local(program, engine, data))
        close(loss, expected.detach(), "loss again")
        norm = torch.nn.utils.clip_grad_norm_(plain.values(), CLIP)
        close(engine.grad_norm, norm, "norm")
        assert norm > CLIP
        optimizer.step()
    for name, parameter in plain.items():
        held = engine.parameters.get(name)
        full = gather(program, engine.groups, name, held.detach() if held is not None else None)
        close(full, parameter.detach(), name)


def close(got: torch.Tensor, want: torch.Tensor, name: str) -> None:
    error = (got - want).abs().max() / want.abs().max()
    assert error < 1e-12, f"{name}: {error}"


CASES: dict[int, list[dict[str, Any]]] = {
    1: [{}, {"kind": "interleaved", "virtual": 2, "recompute": True}],
    2: [
        {"tp": 2},
        {"tp": 2, "sequence": True, "recompute": True},
        {"dp": 2},
        {"pp": 2, "kind": "gpipe", "micro_batches": 3},
        {"pp": 2, "kind": "1f1b", "micro_batches": 4, "recompute": True},
        {"pp": 2, "kind": "interleaved", "virtual": 2, "micro_batches": 4},
    ],
    4: [
        {"pp": 2, "dp": 2, "micro_batches": 1},
        {"pp": 2, "tp": 2, "sequence": True},
        {"dp": 2, "tp": 2, "sequence": True, "drop": 0.0},
        {"pp": 4, "kind": "1f1b", "micro_batches": 5},
    ],
}


def _check_all(rank: int, ranks: int) -> None:
    for options in CASES[ranks]:
        check(options)


@pytest.mark.parametrize("ranks", CASES)
def test_equals_the_plain_model(ranks: int) -> None:
    if ranks == 1:
        _check_all(0, 1)
    else:
        plans.spawn(_check_all, ranks, ranks)


def _sent(rank: int) -> None:
    """What a tp 2, pp 2 rank sends in a step, counted by hand."""
    program = small.program(pp=2, tp=2, micro_batches=2, recompute=True)
    engine = build(program)
    engine.groups.log.keep = True
    engine.step(local(program, engine, small.batch(samples(program))))
    state = small.MICRO * small.SEQ * small.HIDDEN * 8
    found: dict[tuple[str, str, str], list[int]] = {}
    for row in engine.groups.log.rows:
        found.setdefault((row.axis, row.kind, row.phase), []).append(row.bytes)
    stage = engine.groups.coordinates["pp"]
    micro, blocks = 2, 2
    tokens = small.MICRO * small.SEQ * 8
    embedding = -(-small.VOCAB // 2) if engine.groups.coordinates["tp"] == 0 else small.VOCAB // 2
    forward = [state] * blocks + ([state] if stage == 0 else [tokens, 3 * tokens])
    assert sorted(found["tp", "all_reduce", "forward"]) == sorted(forward * micro)
    assert found["tp", "all_reduce", "recompute"] == [state] * (blocks * micro)
    assert found["tp", "all_reduce", "backward"] == [state] * (micro * (blocks + stage))
    assert found["pp", "send", "send"] == [state] * (2 * micro)
    assert found["pp", "all_reduce", "sync"] == [embedding * small.HIDDEN * 8]
    assert found["pp", "all_reduce", "control"] == [8, 8]
    assert found["tp", "all_reduce", "control"] == [8]


def test_the_log_holds_all_that_is_sent() -> None:
    plans.spawn(_sent, 4)


def _refuse(rank: int) -> None:
    program = small.program(dp=2, micro_batches=1)
    engine = build(program)
    data = local(program, engine, small.batch(samples(program)))
    with pytest.raises(InputError, match="labels has 1 samples, this rank's part of a step has 2"):
        engine.step(data | {"labels": data["labels"][:1]})
    with pytest.raises(InputError, match="the batch has no tokens"):
        engine.step({"labels": data["labels"]})
    with pytest.raises(InputError, match="step 0: no target"):
        engine.step(data | {"labels": torch.full_like(data["labels"], small.IGNORED)})
    with pytest.raises(InputError, match="the plan needs 4 ranks .pp 1 x dp 2 x tp 2., 2 run"):
        Groups(small.program(dp=2, tp=2))
    before = {name: p.detach().clone() for name, p in engine.parameters.items()}
    name = "2.up_bias"
    with torch.no_grad():
        engine.parameters[name][0] = math.nan if rank == 1 else 0.0
    with pytest.raises(InputError, match="step 0: the loss is nan; first made by rank 1, .*block 2: 2.up_bias was so"):
        engine.step(data)
    assert all(torch.equal(p.detach(), before[n]) for n, p in engine.parameters.items() if n != name)


def test_refusals() -> None:
    plans.spawn(_refuse, 2)


def _overflow(rank: int) -> None:
    program = small.program(pp=2, drop=0.0)
    engine = build(program)
    if "1.norm" in engine.parameters:
        with torch.no_grad():
            engine.parameters["1.norm"].fill_(1e308)
            engine.parameters["1.up"].fill_(1e308)
    with pytest.raises(InputError, match="first made by rank ., micro-batch 0, stage 0: block 1: "):
        engine.step(local(program, engine, small.batch(samples(program))))


def test_the_first_bad_op_is_named_across_stages() -> None:
    plans.spawn(_overflow, 2)


def _save_and_load(rank: int, folder: str) -> None:
    program = small.program(pp=2)
    data = small.batch(samples(program))
    engine = build(program, schedule=warmup_cosine(2, 10))
    engine.step(data)
    engine.save(folder)
    again = build(program, schedule=warmup_cosine(2, 10))
    assert again.load(folder).step == 1
    engine.step(data)
    again.step(data)
    assert again.samples_read == 2 * samples(program)
    for name, parameter in engine.parameters.items():
        assert torch.equal(parameter, again.parameters[name]), name


def test_a_loaded_engine_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    plans.spawn(_save_and_load, 2, str(tmp_path))


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
    engine = build(program, schedule=warmup_cosine(2, 10))
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
    whole = _trained(program, build(program, schedule=rate), lambda step: None, 6)
    first = build(program, schedule=rate)
    _trained(program, first, lambda step: None, 3)
    first.save(tmp_path)
    again = build(program, schedule=rate)
    again.optimizer = factory(torch.optim.AdamW, lr=7.0, weight_decay=0.9)(again.trained)
    again.load(tmp_path)
    after, parameters = _trained(program, again, lambda step: None, 3)
    assert after == whole[0][3:]
    assert all(torch.equal(p, whole[1][n]) for n, p in parameters.items())
    again.load(tmp_path, lr=10 * RATE)
    assert _trained(program, again, lambda step: None, 3)[0] == pytest.approx([10 * r for r in after])


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
