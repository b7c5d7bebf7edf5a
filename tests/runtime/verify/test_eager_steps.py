"""The reference is the eager module itself, in float64 throughout, whatever dtypes its forward names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partitioner import trace
from partitioner.comparing.eager_float64 import copied, widened
from partitioner.errors import InputError
from runtime.verify.captured_graph import captured
from runtime.verify.eager_steps import Ran, first_step, loss_of, steps_in_float64, wanted
from runtime.verify.parity import difference
from runtime.verify.plain_steps import Steps


class Net(nn.Module):
    """``between`` acts on hidden values between two linears."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.up, self.down = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16)
        self.between = between

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.between(self.up(self.emb(x)))
        return F.cross_entropy(self.down(h.to(self.down.weight.dtype)).flatten(0, 1), y.flatten())


def batch(samples: int = 3) -> dict[str, Tensor]:
    ids = torch.randint(16, (samples, 4), generator=torch.Generator().manual_seed(0))
    return {"x": ids, "y": ids.roll(-1, 1)}


def _float64(module: nn.Module, given: dict[str, Tensor], steps: int, clip: float = math.inf, lr: float = 0.0) -> Ran:
    """Draws are keyed by the graph of a plain Net, which has none."""
    return steps_in_float64(module, trace(Net(), batch()), given, steps, clip, lr)


TABLE = torch.linspace(0.1, 1.0, 8)
LITERALS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: x.float(),
    "bfloat16": lambda x: x.bfloat16(),
    "half": lambda x: x.half(),
    "to": lambda x: x.to(torch.float32) + x.to(dtype=torch.bfloat16),
    "type": lambda x: x.type(torch.float32) + x.type("torch.FloatTensor"),
    "type_as": lambda x: x.type_as(TABLE),
    "softmax": lambda x: x.softmax(-1, dtype=torch.float32) + F.softmax(x, -1, dtype=torch.float32),
    "factory": lambda x: x * torch.full((8,), 1 / 3, dtype=torch.float32),
    "default dtype": lambda x: x * torch.linspace(0.1, 0.7, 8),
    "whole numbers divided": lambda x: x * torch.cos(torch.arange(8) / 7),
    "a tensor that nobody holds": lambda x: F.linear(x, TABLE.diag()),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.float().view(-1, 4, 4, 2)) * 1j).flatten(-2),
    "autocast": lambda x: _autocast(x),
}


def _autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x.new_ones(8, 8)


@pytest.mark.parametrize("name", LITERALS)
def test_forward_is_in_float64_whatever_it_casts_to(name: str) -> None:
    ran = _float64(Net(LITERALS[name]), batch(), 1)
    assert ran.rounded is None
    assert ran.made == {torch.float64}
    assert {g.dtype for g in ran.steps.gradients.values()} == {torch.float64}


def unseen(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x.to(torch.float32) * 1.5


def test_what_still_rounds_is_said_and_widens_the_limit() -> None:
    """Compiled code, for one, names its dtypes where no mode sees them."""
    module = Net(unseen)
    ran = _float64(module, batch(), 1)
    assert ran.rounded is not None
    assert ran.rounded[1] == torch.float32
    reference = wanted(module, trace(Net(), batch()), batch(), 1, 1.0, 1e-3)
    assert 1e-6 < reference.limit < 1e-4
    assert "rounds to torch.float32" in reference.remark


def test_steps_are_those_of_the_module_in_float64() -> None:
    """The same loop, written out."""
    module, given = Net(), batch()
    plain = copied(module).double()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = plain(**given)
        loss.backward()
        losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
    found = _float64(module, given, 3, 0.5, 1e-2).steps
    assert found.loss == losses[0]
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found.parameters[name], parameter.detach(), rtol=1e-13, atol=1e-15)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32


def _forget(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.zero_()


def test_a_copy_keeps_what_acts_on_gradients() -> None:
    module = Net()
    module.up.weight.register_hook(lambda grad: 0 * grad)
    module.down.bias.register_post_accumulate_grad_hook(_forget)
    gradients = first_step(module, trace(Net(), batch()), batch()).steps.gradients
    exact = _float64(module, batch(), 1).steps.gradients
    for found in (gradients, exact):
        assert not found["up.weight"].any()
        assert not found["down.bias"].any()
        assert found["down.weight"].any()


class Closing(Net):
    """Functions of its own close over it and its modules: ``self.ffn = lambda x: self.out(self.inner(x))``."""

    def __init__(self) -> None:
        super().__init__()
        inner, tables = nn.ModuleDict({"up": nn.Linear(8, 8), "drop": nn.Dropout(0.2)}), [self.emb]
        self.inner, self.forms = inner, [lambda x: inner.drop(F.gelu(inner.up(x)))]
        grown = lambda x: self.up(x) + tables[0](torch.zeros((), dtype=torch.long))  # noqa: E731
        self.named = {"grown": lambda x, also=inner.up: grown(x) + also(x)}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.emb(x)
        return F.cross_entropy(self.down(self.named["grown"](h) + self.forms[0](h)).flatten(0, 1), y.flatten())


def test_a_copy_has_functions_of_its_own() -> None:
    module = Closing()
    trace(module, batch())  # compares: random calls are found in the copy that runs
    made = widened(module)
    made(**batch()).backward()
    assert {p.grad.dtype for p in made.parameters() if p.grad is not None} == {torch.float64}
    assert all(p.grad is not None for p in made.parameters())
    assert all(p.grad is None for p in module.parameters())


class Insisting(Net):
    """Asks for the dtypes of its values."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.up(self.emb(x))
        assert h.dtype == torch.float32
        assert torch.complex(h, h).dtype == torch.complex64
        h = h.masked_fill(h > 100, torch.finfo(h.dtype).min) + torch.ones(8, dtype=h.dtype) / 3
        return F.cross_entropy(self.down(h.to(self.down.weight.dtype)).flatten(0, 1), y.flatten())


def test_a_module_that_insists_on_its_dtypes_runs_in_float64() -> None:
    module = Insisting()
    ran = steps_in_float64(module, trace(module, batch()), batch(5), 1)
    assert ran.rounded is None
    assert {g.dtype for g in ran.steps.gradients.values()} == {torch.float64}


class Scaled(Net):
    """By numbers that single precision rounds, and double does not."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.emb(x) * torch.tensor(32**0.5, dtype=self.emb.weight.dtype) * torch.tensor(0.1)
        h = h * h.new_tensor([3**0.5]) + torch.as_tensor([1 / 3], dtype=h.dtype)
        return F.cross_entropy(self.down(self.up(h)).flatten(0, 1), y.flatten())


def test_numbers_in_a_tensor_are_rounded_as_in_the_graph() -> None:
    assert trace(Scaled(), batch()).notes == ()


class Attends(Net):
    """The bias of keys moves all scores of a row alike: its gradient is rounding; scaled down, below most others."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.scale = nn.Linear(8, 8), 1e-9
        self.deep = nn.ParameterList(torch.full((8,), 1 + n / 10) for n in range(12))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.emb(x)
        for gain in self.deep:  # the median gradient is one of these
            h = h + 1e-16 * gain * h
        scores = (self.up(h) @ self.keys(h).transpose(1, 2)).softmax(-1)
        return F.cross_entropy(self.down(h + self.scale * scores @ h).flatten(0, 1), y.flatten())


def test_a_gradient_of_rounding_is_no_difference() -> None:
    module = Attends()
    graph = trace(module, batch())
    ran = steps_in_float64(module, graph, batch(5), 1).steps
    noise = {n: g + 1e-27 * (n == "keys.bias") for n, g in ran.gradients.items()}
    assert difference(replace(ran, gradients=noise), ran).gradient < 1e-9
    wrong = {n: g + 1e-12 * (n == "keys.weight") for n, g in ran.gradients.items()}
    assert difference(replace(ran, gradients=wrong), ran).gradient > 1e-9


def test_modes_and_random_state_stay() -> None:
    module = Net()
    module.drop = nn.Dropout(0.5).eval()
    module.between = module.drop
    still = steps_in_float64(module, trace(module, batch()), batch(), 1).steps.loss
    module.drop.train()
    before = torch.get_rng_state()
    assert steps_in_float64(module, trace(module, batch()), batch(), 1).steps.loss != still
    assert torch.equal(before, torch.get_rng_state())


def test_a_module_that_can_not_be_copied_is_named() -> None:
    module = Net()
    module.cache = module.up.weight * 2  # the result of an op
    with pytest.raises(InputError, match="Net can't be copied"):
        widened(module)


def test_a_module_that_fails_by_itself_is_named() -> None:
    module = Net(lambda x: x.reshape(3, 4, 8))
    with pytest.raises(InputError, match=r"Net itself fails on a batch of x \(5, 4\), y \(5, 4\): RuntimeError: shape"):
        _float64(module, batch(5), 1)


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (1 + 1e-4)


def test_the_limit_of_a_graph_follows_from_its_module() -> None:
    """Rounding passes, a ten thousandth in one gradient does not."""
    module, given = Net(torch.tanh), batch(5)
    found = captured(module, trace(module, batch(3)), given)
    assert found is not None
    assert found.passed
    assert 1e-7 < found.limit < 2e-5
    module.between = lambda x: Wrong.apply(torch.tanh(x))
    other = Net(torch.tanh)
    changed = captured(module, trace(other, batch(3)), given)
    assert changed is not None
    assert not changed.passed


def test_a_graph_is_compared_with_the_module_that_it_is_of() -> None:
    module = Net()
    graph = trace(module, batch())
    with torch.no_grad():
        module.up.bias += 0.1
    module.up.register_forward_hook(lambda m, args, out: 1.001 * out)
    reference = wanted(module, graph, batch(), 1, 1.0, 1e-3)
    assert reference.remark == ""
    assert reference.steps.loss == _float64(module, batch(), 1).steps.loss


@pytest.mark.parametrize(
    "output",
    [
        torch.tensor(1.0), {"loss": torch.tensor(1.0), "z": torch.tensor(2.0)}, (torch.ones(2), torch.tensor(1.0)),
        {"logits": torch.ones(2), "total": torch.tensor(1.0)},
    ],
)  # fmt: skip
def test_the_loss_is_found_in_what_forward_returns(output: Any) -> None:
    assert float(loss_of(output)) == 1


@pytest.mark.parametrize("output", [torch.ones(2), (torch.tensor(1.0), torch.tensor(2.0)), None])
def test_no_loss_is_no_number(output: Any) -> None:
    with pytest.raises(InputError, match="scalar"):
        loss_of(output)


def test_steps_differ_from_others() -> None:
    found = _float64(Net(), batch(), 3, 1.0, 1e-3).steps
    moved = {n: p + 1e-6 for n, p in found.parameters.items()}
    assert difference(Steps(found.loss, found.gradients, found.norm, moved), found).largest > 1e-7
    assert math.isfinite(found.norm)
