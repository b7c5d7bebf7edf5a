"""Batches of other lengths and of fewer samples train, and evaluation computes, as the plain module does."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plans
import pytest
import torch
from torch import nn

from partitioner import Cluster, search, trace
from partitioner.errors import InputError
from partitioner.lowering.program import Program
from partitioner.user_code.outputs import loss_of
from runtime import Engine, parallelize
from runtime.state.parameters import gather
from runtime.train.forms import Form, Forms
from runtime.train.trace_forms import TraceForms
from tools.models.load import load

GPT = f"{Path(__file__).parents[3] / 'examples' / 'gpt.py'}:model"
SMALL: dict[str, object] = {"vocab": 64, "hidden": 32, "heads": 4, "seq": 24, "layers": 4, "dropout": 0.0, "tied": True}
LLAMA: dict[str, object] = {
    "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "intermediate_size": 48,
}  # fmt: skip
T5: dict[str, object] = {
    "num_layers": 2, "d_model": 32, "num_heads": 4, "d_kv": 8, "d_ff": 48, "vocab_size": 64, "dropout_rate": 0.0,
}  # fmt: skip
Batch = dict[str, torch.Tensor]
SAMPLES = 8


def model_of(spec: str, settings: Mapping[str, object]) -> tuple[nn.Module, Batch]:
    """In float64, with the start that the seed gives, and an example of two samples."""
    torch.manual_seed(3)
    source = load(spec, dict(settings), seq=24 if spec.startswith("hf") else None)
    return source.module.double(), dict(source.batch)


def batch_of(example: Batch, samples: int, length: int, seed: int) -> Batch:
    """Tokens of ``length``, every third target not counted, as many of each sample as it has."""
    generator = torch.Generator().manual_seed(seed)
    made = {n: torch.randint(64, (samples, length), generator=generator) for n in example}
    made["labels"][:, ::3] = -100
    made["labels"][0, : length // 2] = -100
    return made


def engine_of(spec: str, settings: Mapping[str, object], pins: Mapping[str, str | int], **options: Any) -> Any:
    model, example = model_of(spec, settings)
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    graph = trace(model, example)
    plan = search(graph, Cluster.load("local-cpu", devices=ranks), SAMPLES, pins)
    return copy.deepcopy(model), example, parallelize(model, example, global_batch=SAMPLES, plan=plan, **options)


def part(engine: Engine, data: Batch, sizes: list[int]) -> Batch:
    """This data rank's samples, of which the ranks have ``sizes``."""
    rank = engine.groups.coordinates["dp"]
    first = sum(sizes[:rank])
    return {n: t[first : first + sizes[rank]] for n, t in data.items()}


def check_step(plain: nn.Module, engine: Engine, data: Batch, sizes: list[int], most: float) -> None:
    """Loss, and every gradient, of these samples, within a share of ``most``."""
    for p in plain.parameters():
        p.grad = None
    wanted = loss_of(plain(**data))
    wanted.backward()
    found = engine.gradients(part(engine, data, sizes))
    assert abs(found - wanted.detach()) <= most * abs(wanted.detach())
    own = dict(plain.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in own.values() if p.grad is not None)
    for name, parameter in engine.program.parameters.items():
        held = engine.parameters.get(name)
        grad = None if held is None else torch.zeros_like(held) if held.grad is None else held.grad
        whole = gather(engine.program, engine.groups, name, grad)
        assert whole is not None
        want = own[name].grad if own[name].grad is not None else torch.zeros_like(own[name])
        assert float((whole - want).abs().max()) <= most * largest, name
        assert parameter.requires_grad


def check_forms(spec: str, settings: Mapping[str, object], pins: Mapping[str, str | int]) -> None:
    plain, example, engine = engine_of(spec, settings, pins)
    dp = engine.groups.size("dp")
    most = 1e-6 if spec.startswith("hf") else 1e-11  # transformers' norms are in float32
    even, each = [SAMPLES // dp] * dp, SAMPLES // dp
    for seed, length in enumerate((24, 17, 24)):
        check_step(plain, engine, batch_of(example, SAMPLES, length, seed), even, most)
    uneven = [each - 1 - n % 2 for n in range(dp)]
    check_step(plain, engine, batch_of(example, sum(uneven), 17, 9), uneven, most)
    for length, sizes in ((24, even), (24, uneven)):
        data = batch_of(example, sum(sizes), length, 11)
        with torch.no_grad():
            wanted = loss_of(plain.eval()(**data))
        found = engine.evaluate(part(engine, data, sizes))
        plain.train()
        assert abs(found - wanted) <= most * abs(wanted)
    check_step(plain, engine, batch_of(example, SAMPLES, 24, 12), even, most)  # nothing is left behind


def _check(rank: int, *case: Any) -> None:
    check_forms(*case)


TP: dict[str, str | int] = {"tp": 2, "boundary": "sharded"}
ZERO: dict[str, str | int] = {"dp": 2, "zero": 3, "micro_batch": 2}
PP: dict[str, str | int] = {"pp": 2, "schedule": "1f1b", "micro_batch": 2, "recompute": "on"}
FOUR: dict[str, str | int] = {"pp": 2, "schedule": "interleaved", "virtual": 2, "dp": 2, "zero": 0, "micro_batch": 1}
CASES: list[Any] = [
    (1, GPT, SMALL, {"micro_batch": 2}),
    (2, GPT, SMALL, ZERO),
    (2, GPT, SMALL, PP),
    *(
        pytest.param(*row, marks=pytest.mark.parity)
        for row in (
            (2, GPT, SMALL, TP),
            (2, "hf:llama", LLAMA, ZERO),
            (2, "hf:t5", T5, {"tp": 2}),
            (4, "hf:llama", LLAMA, {**TP, "dp": 2, "zero": 1, "micro_batch": 2}),
            (4, GPT, SMALL, FOUR),
        )
    ),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "spec", "settings", "pins"), CASES)
def test_equal_the_plain_module(ranks: int, spec: str, settings: dict[str, object], pins: dict[str, str | int]) -> None:
    if ranks == 1:
        check_forms(spec, settings, pins)
    else:
        plans.spawn(_check, ranks, spec, settings, pins)


def test_what_drops_in_training_is_whole_in_evaluation() -> None:
    plain, example, engine = engine_of(GPT, SMALL | {"dropout": 0.4}, {"micro_batch": 2})
    data = batch_of(example, SAMPLES, 24, 1)
    with torch.no_grad():
        wanted = loss_of(plain.eval()(**data))
    assert abs(engine.evaluate(data) - wanted) <= 1e-11 * wanted
    assert abs(engine.gradients(data) - wanted) > 1e-6 * wanted


def test_lengths_that_data_ranks_do_not_share_are_padded() -> None:
    plans.spawn(_uneven, 2)


def _uneven(rank: int) -> None:
    plain, example, engine = engine_of(GPT, SMALL, {"dp": 2, "micro_batch": 2}, padding={"tokens": 0, "labels": -100})
    data = batch_of(example, SAMPLES, 20, 4)
    data["labels"][4:, 15:] = -100
    mine = part(engine, data, [4, 4])
    own = {n: t[:, : 20 - 5 * rank] for n, t in mine.items()}
    wanted = loss_of(plain(**data)).detach()
    assert abs(engine.gradients(own) - wanted) <= 1e-11 * wanted


def test_beyond_the_lengths_that_are_kept_batches_are_padded_or_the_oldest_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program, traced = TraceForms.program, list[int]()

    def noted(self: TraceForms, form: Form) -> Program:
        traced.append(form.lengths[0][1][0])
        return program(self, form)

    monkeypatch.setattr(TraceForms, "program", noted)
    plain, example, engine = engine_of(GPT, SMALL, {}, lengths=1, padding={"tokens": 0, "labels": -100})
    for length in (20, 12, 24, 22):
        data = batch_of(example, SAMPLES, length, length)
        wanted = loss_of(plain(**data)).detach()
        assert abs(engine.gradients(data) - wanted) <= 1e-11 * wanted
    assert traced == [20]
    plain, example, engine = engine_of(GPT, SMALL, {}, lengths=1)
    for length in (20, 12):
        data = batch_of(example, SAMPLES, length, length)
        wanted = loss_of(plain(**data)).detach()
        assert abs(engine.gradients(data) - wanted) <= 1e-11 * wanted
    for length in (12, 20):
        engine.gradients(batch_of(example, SAMPLES, length, length))
    assert traced == [20, 20, 12, 20]


def test_none_are_kept_where_none_are_asked_for() -> None:
    _, example, engine = engine_of(GPT, SMALL, {}, lengths=0)
    with pytest.raises(InputError, match="tokens 20, labels 20, the model was traced with tokens 24"):
        engine.step(batch_of(example, SAMPLES, 20, 1))
    with pytest.raises(InputError, match="tokens has 9 samples, this rank's part of a step has 8, or fewer"):
        engine.step(batch_of(example, SAMPLES + 1, 24, 1))


def test_the_model_is_left_in_the_mode_in_which_it_was() -> None:
    model, example = model_of(GPT, SMALL)
    model.blocks[0].eval()
    before = [m.training for m in model.modules()]
    engine = parallelize(model, example, global_batch=SAMPLES, plan=None)
    engine.evaluate(batch_of(example, SAMPLES, 24, 1))
    assert [m.training for m in model.modules()] == before


class Regression(nn.Module):
    """Its loss is a mean over samples, of which nothing but their number is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.layers(x), y)


def test_fewer_samples_of_a_plain_mean() -> None:
    plans.spawn(_plain_mean, 2)


def _plain_mean(rank: int) -> None:
    torch.manual_seed(5)
    model = Regression().double()
    data = {"x": torch.randn(SAMPLES, 4, 6).double(), "y": torch.randn(SAMPLES, 4, 3).double()}
    pins: dict[str, str | int] = {"dp": 2, "micro_batch": 2}
    plain, engine = copy.deepcopy(model), parallelize(model, data, global_batch=SAMPLES, pins=pins)
    for sizes in ([4, 4], [3, 1], [2, 4]):
        check_step(plain, engine, {n: t[: sum(sizes)] for n, t in data.items()}, sizes, 1e-11)


def test_what_waits_for_other_ranks_has_the_limit_of_a_step_and_tracing_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched, seen = list[str](), dict[str, str]()

    class Noted:
        def __init__(self, limit_seconds: float, what: str, thread: str | None = None) -> None:
            self.what = what

        def __enter__(self) -> None:
            watched.append(self.what)

        def __exit__(self, *_: object) -> None:
            watched.pop()

    def noted(owner: type, name: str) -> None:
        inner = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: seen.setdefault(name, watched[-1]) and inner(*given))

    noted(Forms, "_largest")
    noted(TraceForms, "program")
    _, example, engine = engine_of(GPT, SMALL, {})
    monkeypatch.setattr("runtime.train.engine.Watchdog", Noted)
    engine.step(batch_of(example, SAMPLES, 20, 1))
    assert seen == {"_largest": "step 0", "program": "tracing a batch of another form"}


def test_nothing_keeps_an_engine_that_nobody_holds() -> None:
    """Its process groups would outlive ``destroy_process_group``."""
    _, example, engine = engine_of(GPT, SMALL, {})
    engine.step(batch_of(example, SAMPLES, 20, 1))
    kept = weakref.ref(engine)
    gc.collect()
    gc.disable()
    try:
        del engine
        assert kept() is None
    finally:
        gc.enable()
