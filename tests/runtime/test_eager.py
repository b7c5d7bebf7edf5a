"""The reference is the eager module itself, in float64 throughout, whatever dtypes its forward names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partitioner import trace
from partitioner.errors import InputError
from partitioner.widen import copied, widened
from runtime.captured import captured
from runtime.eager import first_step, loss_of, steps_in_float64, wanted
from runtime.parity import difference
from runtime.reference import Steps


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
    ran = steps_in_float64(Net(LITERALS[name]), batch(), 1)
    assert ran.rounded is None
    assert ran.made == {torch.float64}
    assert {g.dtype for g in ran.steps.gradients.values()} == {torch.float64}


def unseen(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x.to(torch.float32) * 1.5


def test_what_still_rounds_is_said_and_widens_the_limit() -> None:
    """Compiled code, for one, names its dtypes where no mode sees them."""
    module = Net(unseen)
    ran = steps_in_float64(module, batch(), 1)
    assert ran.rounded is not None
    assert ran.rounded[1] == torch.float32
    start = {n: p.detach().double() for n, p in module.named_parameters()}
    reference = wanted(module, trace(Net(), batch()), start, batch(), 1, 1.0, 1e-3)
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
    found = steps_in_float64(module, given, 3, 0.5, 1e-2).steps
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
    gradients = first_step(module, batch()).steps.gradients
    exact = steps_in_float64(module, batch(), 1).steps.gradients
    for found in (gradients, exact):
        assert not found["up.weight"].any()
        assert not found["down.bias"].any()
        assert found["down.weight"].any()


def test_modes_and_random_state_stay() -> None:
    module = Net()
    module.drop = nn.Dropout(0.5).eval()
    module.between = module.drop
    assert not steps_in_float64(module, batch(), 1).drew
    module.drop.train()
    before = torch.get_rng_state()
    assert steps_in_float64(module, batch(), 1).drew
    assert torch.equal(before, torch.get_rng_state())


def test_a_module_that_can_not_be_copied_is_named() -> None:
    module = Net()
    module.cache = module.up.weight * 2  # the result of an op
    with pytest.raises(InputError, match="Net can't be copied"):
        widened(module)


def test_a_module_that_fails_by_itself_is_named() -> None:
    module = Net(lambda x: x.reshape(3, 4, 8))
    with pytest.raises(InputError, match=r"Net itself fails on a batch of x \(5, 4\), y \(5, 4\): RuntimeError: shape"):
        steps_in_float64(module, batch(5), 1)


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
    start = {n: p.detach().double() for n, p in module.named_parameters()}
    reference = wanted(module, graph, start, batch(), 1, 1.0, 1e-3)
    assert reference.remark == ""
    assert reference.steps.loss == steps_in_float64(module, batch(), 1).steps.loss


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
    with pytest.raises(InputError, match="scalar loss"):
        loss_of(output)


def test_steps_differ_from_others() -> None:
    found = steps_in_float64(Net(), batch(), 3, 1.0, 1e-3).steps
    moved = {n: p + 1e-6 for n, p in found.parameters.items()}
    assert difference(Steps(found.loss, found.gradients, found.norm, moved), found).largest > 1e-7
    assert math.isfinite(found.norm)
