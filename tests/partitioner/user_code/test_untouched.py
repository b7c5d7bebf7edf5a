from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captured import Net, assert_equal, batch_of, plain, refused
from torch import nn

from partitioner import trace


class Frozen(Net):
    """A frozen part, in eval, with a dropout that must not run; the rest trains."""

    def __init__(self) -> None:
        super().__init__(plain, 2)
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).requires_grad_(False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(self.encoder(x), y)


def test_each_module_keeps_its_mode() -> None:
    model = Frozen().train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    graph = assert_equal(model, batch_of())
    assert [module.training for module in model.modules()] == modes
    assert "dropout" not in str(graph.module.graph)


def test_a_part_in_training_in_a_model_in_eval_keeps_its_dropout() -> None:
    model = Frozen().eval()
    model.encoder.train()
    assert "dropout" in str(trace(model, batch_of()).module.graph)
    assert model.encoder.training
    assert not model.training


def test_what_is_drawn_between_captures_is_no_draw_of_the_model() -> None:
    """By what is told of progress: kept from one capture to the next, and to the end."""
    drawn, model, batch = list[float](), Net(plain, 4), batch_of()
    random.seed(0)
    torch.manual_seed(0)
    trace(model, batch, progress=lambda text: drawn.append(random.random() + torch.rand(()).item()))
    random.seed(0)
    torch.manual_seed(0)
    assert len(drawn) > 2
    assert drawn == [random.random() + torch.rand(()).item() for _ in drawn]


class Counting(Net):
    """Changes about everything in its forward that one can."""

    def __init__(self, fails: bool) -> None:
        super().__init__(plain, 4)
        self.fails, self.calls, self.seen, self.cache = fails, 0, [], {"last": None}
        self.table = torch.zeros(3)
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x.shape)
        self.cache["last"], self.new = x, y
        self.eval()
        np.random.rand()
        random.random()
        torch.manual_seed(5)
        if self.fails:
            raise ValueError("no")
        return super().forward(x + self.mean, y)


def _state(model: Counting) -> list[Any]:
    own = [(n, p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()]
    draws = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    values = {k: repr(v) for k, v in vars(model).items() if not k.startswith("_")}
    modes = [module.training for module in model.modules()]
    return [repr(own), draws, values, modes, [id(p) for p in model.parameters()], repr(list(model.buffers()))]


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_and_the_random_state_are_as_before(fails: bool) -> None:
    model = Counting(fails)
    before = _state(model)
    refused(model)
    assert _state(model) == before


class InTheModel(nn.Module):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw, self.own = draw, random.Random(0)
        self.noise, self.linear = torch.Generator(), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.draw()
        return self.linear(x) * scale


class Drawing(Net):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(plain, 2)
        self.inner = InTheModel(draw)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(self.inner(x), y)


own_generator = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (random.random, "Python's random"), (lambda: float(random.randint(1, 5)), "Python's random"),
        (np.random.rand, "numpy's random"),
    ],
)  # fmt: skip
def test_draws_outside_torch_are_refused_by_name_and_place(draw: Callable[[], float], name: str) -> None:
    said = refused(Drawing(draw))
    assert f"draws from {name}" in said
    assert "in inner at" in said
    assert "test_untouched.py:" in said


def test_a_generator_of_the_models_own_counts() -> None:
    model = Drawing(random.random)
    model.inner.draw = model.inner.own.random
    before = model.inner.own.getstate()
    assert "draws from inner.own in its forward, in inner at" in refused(model)
    assert model.inner.own.getstate() == before


def test_a_torch_generator_of_the_models_own_is_refused() -> None:
    class Noisy(Drawing):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.rand(8, generator=self.inner.noise), y)

    assert "a torch.Generator" in refused(Noisy(lambda: 1.0))


def test_what_follows_tracing_draws_as_if_there_had_been_none() -> None:
    random.seed(1)
    torch.manual_seed(1)
    wanted = random.random(), float(torch.rand(()))
    model = Net(plain, 2)
    random.seed(1)
    torch.manual_seed(1)
    trace(model, batch_of())
    assert (random.random(), float(torch.rand(()))) == wanted
