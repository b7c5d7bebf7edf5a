"""Optimizers that need whole parameters, or all of them, are refused where a plan divides these, and only there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import plans
import pytest
import torch

from partitioner.errors import InputError
from runtime.state.optimizer import Named, factory
from runtime.state.whole_updates import check_updates

CPU = torch.device("cpu")


class ByNorm(torch.optim.SGD):
    """Each parameter's update is as long as the parameter (LARS)."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.mul_(parameter.detach().norm() / parameter.grad.norm())
        super().step()


class ByAll(torch.optim.SGD):
    """Each update is divided by the norm of all gradients."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        norm = torch.stack([p.grad.norm() for p in self.param_groups[0]["params"]]).norm()
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.div_(norm)
        super().step()


class Own(torch.optim.Optimizer):
    """Signs of gradients: elementwise, of no class of torch's."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad.sign(), alpha=self.param_groups[0]["lr"])


def two_kinds(named: Named) -> torch.optim.Optimizer:
    """Groups by number of dimensions."""
    groups = [{"params": [p for _, p in named if (p.dim() > 1) is m], "weight_decay": 0.1 * m} for m in (True, False)]
    return torch.optim.AdamW(groups)


ELEMENTWISE = [
    torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam, torch.optim.Adagrad, torch.optim.Adamax, torch.optim.NAdam,
    torch.optim.RAdam, torch.optim.RMSprop, partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    partial(torch.optim.AdamW, amsgrad=True, foreach=False), Own, two_kinds,
]  # fmt: skip


@pytest.mark.parametrize("given", ELEMENTWISE, ids=lambda given: getattr(given, "__name__", "partial"))
def test_elementwise_optimizers_may_update_parts(given: Callable[..., torch.optim.Optimizer]) -> None:
    check_updates(plans.program(pp=2, tp=2), factory(given), CPU)


@pytest.mark.parametrize("given", [torch.optim.Adafactor, ByNorm], ids=["Adafactor", "ByNorm"])
def test_what_needs_whole_parameters_is_refused_where_they_are_divided(given: type[torch.optim.Optimizer]) -> None:
    with pytest.raises(InputError, match=f"optimizer {given.__name__} updates .* as a whole, and ranks hold parts"):
        check_updates(plans.program(tp=2), factory(given), CPU)
    check_updates(plans.program(pp=2, dp=2), factory(given), CPU)


def test_what_reads_all_parameters_is_refused_where_stages_hold_some() -> None:
    with pytest.raises(InputError, match=r"ByAll updates .* by what other parameters have, of which stages hold some"):
        check_updates(plans.program(pp=2), factory(ByAll, lr=0.1), CPU)
    with pytest.raises(InputError, match="as a whole"):
        check_updates(plans.program(tp=2), factory(ByAll, lr=0.1), CPU)
    check_updates(plans.program(dp=4), factory(ByAll, lr=0.1), CPU)


def test_what_can_not_be_made_says_so() -> None:
    with pytest.raises(InputError, match="optimizer can't be made: Invalid learning rate: -1"):
        check_updates(plans.program(), factory(torch.optim.AdamW, lr=-1.0), CPU)
    with pytest.raises(InputError, match="Muon only supports 2D"):  # it takes no vectors
        check_updates(plans.program(), factory(torch.optim.Muon), CPU)


def matrices_by_muon(named: Named) -> torch.optim.Optimizer:
    return torch.optim.Muon([p for _, p in named if p.dim() == 2])


def test_muon_is_refused_where_a_matrix_is_divided() -> None:
    with pytest.raises(InputError, match="optimizer Muon updates .* as a whole, and ranks hold parts"):
        check_updates(plans.program(tp=2), matrices_by_muon, CPU)
    check_updates(plans.program(pp=2, dp=2), matrices_by_muon, CPU)


def test_what_can_not_step_says_so() -> None:
    with pytest.raises(InputError, match="optimizer LBFGS can't step"):
        check_updates(plans.program(), factory(torch.optim.LBFGS), CPU)


def test_nothing_of_the_model_is_touched() -> None:
    """It is tried on tensors of its own, small ones by the same names, and draws from a generator of its own."""
    torch.manual_seed(0)
    before, asked = torch.get_rng_state(), list[Named]()
    program = plans.program(tp=2)
    check_updates(program, lambda named: (asked.append(named), torch.optim.AdamW([p for _, p in named]))[1], CPU)
    assert torch.equal(before, torch.get_rng_state())
    trained = [name for name, p in program.parameters.items() if p.requires_grad]
    assert all([name for name, _ in named] == trained for named in asked)
    assert max(p.numel() for named in asked for _, p in named) <= 16
