"""Every mesh and schedule trains the small model as plain torch does in one process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import plans
import pytest
import small
import torch
from small_engine import CLIP, RATE, build, close, local, samples

from partitioner import Cluster, lower, search, trace
from partitioner.errors import InputError
from runtime import parameter_groups
from runtime.mesh.groups import Groups
from runtime.state.learning_rates import warmup_cosine
from runtime.state.optimizer import Named, factory
from runtime.state.parameters import gather, materialize
from runtime.train.engine import Engine

STEPS = 3


def grouped(named: Named) -> torch.optim.Optimizer:
    """Matrices decay, the embedding and its copy at half the rate."""
    return torch.optim.AdamW(parameter_groups(named, RATE, 0.3, {"embed*": 0.5}))


def check(options: dict[str, Any]) -> None:
    """Loss, gradients, norm, and parameters after some steps of AdamW, by groups, against the plain model."""
    program = small.program(**options)
    engine = build(program, optimizer=grouped)
    data, drop = small.batch(samples(program)), options.get("drop", small.DROP)
    plain = {n: t.requires_grad_() for n, t in small.weights().items()}
    optimizer = grouped([*plain.items()])
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


class Nested(torch.nn.Module):
    """Takes samples, what belongs to all of them, and what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(6, 8), torch.nn.Linear(8, 5)

    def forward(self, inputs: Any, labels: torch.Tensor, scale: torch.Tensor, times: int = 1) -> torch.Tensor:
        h = self.up(inputs["x"] + inputs["positions"]) * scale * times
        return torch.nn.functional.cross_entropy(self.down(h.relu()).flatten(0, 1), labels.flatten())


def test_what_carries_no_samples_goes_whole_into_every_micro_batch() -> None:
    model, generator = Nested(), torch.Generator().manual_seed(2)
    inputs = {"x": torch.randn(4, 3, 6, generator=generator), "positions": torch.arange(3.0)[:, None] * torch.ones(6)}
    data = {"inputs": inputs, "labels": torch.arange(12).view(4, 3) % 5, "scale": torch.tensor(0.5), "times": 3}
    graph = trace(model, data, compare=False)
    program = lower(graph, search(graph, Cluster.load("local-cpu", devices=1), 4, {"micro_batch": "2"}))
    assert program.micro_batches == 2
    engine = Engine(program, (groups := Groups(program)), materialize(program, groups.coordinates, model, "cpu"), SGD)
    wanted = model(**data)
    wanted.backward()
    assert torch.allclose(engine.gradients(data), wanted.double(), rtol=1e-6)
    for name, parameter in model.named_parameters():
        assert torch.allclose(engine.parameters[name].grad, parameter.grad, rtol=1e-4, atol=1e-7), name
    with pytest.raises(InputError, match="times of the batch is 2, the model was traced with 3"):
        engine.step({**data, "times": 2})
    with pytest.raises(InputError, match=r"inputs.x has 2 samples"):
        engine.step({**data, "inputs": {**inputs, "x": inputs["x"][:2]}})
    with pytest.raises(InputError, match=r"inputs.x is of shape \(2, 6\) a sample, the model was traced with \(3, 6\)"):
        engine.step({**data, "inputs": {**inputs, "x": inputs["x"][:, :2]}})
    with pytest.raises(InputError, match=r"the batch has no scale"):
        engine.step({n: t for n, t in data.items() if n != "scale"})


SGD = factory(torch.optim.SGD, lr=0.1)


def _unshared(rank: int) -> None:
    torch.manual_seed(1)
    model, x = Nested(), torch.randn(4, 3, 6)
    data = {"inputs": {"x": x, "positions": torch.zeros(3, 6)}, "labels": torch.arange(12).view(4, 3) % 5}
    data |= {"scale": torch.tensor(0.5), "times": 3}
    graph = trace(model, data, compare=False)
    program = lower(graph, search(graph, Cluster.load("local-cpu", devices=2), 4, {"dp": 2}))
    engine = Engine(program, (groups := Groups(program)), materialize(program, groups.coordinates, model, "cpu"), SGD)
    own = slice(2 * groups.coordinates["dp"], 2 * groups.coordinates["dp"] + 2)
    mine: dict[str, Any] = {**data, "inputs": {**data["inputs"], "x": x[own]}, "labels": data["labels"][own]}
    engine.step(mine)
    with pytest.raises(InputError, match="scale carries no samples and is not the same on all data ranks"):
        engine.step({**mine, "scale": torch.tensor(0.5 + rank)})


def test_what_carries_no_samples_is_the_same_on_all_data_ranks() -> None:
    plans.spawn(_unshared, 2)


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
    engine = build(program, lr_lambda=warmup_cosine(2, 10))
    engine.step(data)
    engine.save(folder)
    again = build(program, lr_lambda=warmup_cosine(2, 10))
    assert again.load(folder).step == 1
    engine.step(data)
    again.step(data)
    assert again.samples_read == 2 * samples(program)
    for name, parameter in engine.parameters.items():
        assert torch.equal(parameter, again.parameters[name]), name


def test_a_loaded_engine_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    plans.spawn(_save_and_load, 2, str(tmp_path))


def _skip(rank: int, folder: str) -> None:
    program = small.program(pp=2)
    data = small.batch(samples(program))
    engine, plain = build(program, skip_nonfinite=True), build(program)
    run = engine.worker.run

    def bad_loss(*given: Any) -> list[torch.Tensor]:
        return [loss * math.nan for loss in run(*given)]

    def bad_gradient(*given: Any) -> list[torch.Tensor]:
        losses = run(*given)
        if rank == 1:  # the other has to see it too
            engine.trained[-1].register_hook(lambda g: g * math.inf)
        return losses

    wanted = [float(plain.step(data)) for _ in range(2)][0]
    assert float(engine.step(data)) == wanted
    before = {name: p.detach().clone() for name, p in engine.parameters.items()}
    engine.worker.run = bad_loss  # type: ignore[method-assign]
    assert math.isnan(engine.step(data))
    engine.worker.run = run  # type: ignore[method-assign]
    assert (engine.skipped, engine.steps_done, engine.samples_read) == (1, 2, 2 * samples(program))
    for name, parameter in engine.parameters.items():
        assert torch.equal(parameter, before[name]), name
    engine.save(folder)
    again = build(program, skip_nonfinite=True)
    again.load(folder)
    assert again.skipped == 1
    engine.worker.run = bad_gradient  # type: ignore[method-assign]
    engine.step(data)  # the hook acts from the next one on
    engine.step(data)
    assert engine.skipped == 2
    engine.worker.run = bad_loss  # type: ignore[method-assign]
    for _ in range(29):
        engine.step(data)
    with pytest.raises(InputError, match="step .*: the loss is nan, and 30 steps before it were skipped in a row"):
        engine.step(data)


def test_a_step_that_is_no_number_can_be_skipped(tmp_path: Path) -> None:
    plans.spawn(_skip, 2, str(tmp_path))
