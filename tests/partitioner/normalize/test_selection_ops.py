"""Ops of two results: those that two ops of one result say, each against the eager module, and all others refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from partitioner import trace
from partitioner.errors import InputError

Function = Callable[[torch.Tensor], torch.Tensor]
WRITTEN: dict[str, Function] = {
    "var_mean": lambda h: h * (h - torch.var_mean(h, -1, keepdim=True)[1]) / torch.var_mean(h, -1, keepdim=True)[0],
    "std_mean, biased": lambda h: torch.std_mean(h, (-2, -1), unbiased=False)[0] * h.sum((-2, -1)),
    "aminmax": lambda h: h.aminmax(dim=-1).max * 3 - h.aminmax(dim=-1).min,
    "smallest": lambda h: h.topk(2, largest=False).values,
    "smallest's places": lambda h: h.gather(-1, (-h).topk(2, largest=False).indices),
}
REFUSED: dict[str, Function] = {
    "cummax": lambda h: h.cummax(-1).values,
    "kthvalue": lambda h: h.kthvalue(2, -1).values,
    "median": lambda h: h.median(-1).values,
    "linalg_qr": lambda h: torch.linalg.qr(h)[0],
}


class Model(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(6, 6), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.linear(x)).square().sum()


@pytest.mark.parametrize("name", WRITTEN)
def test_two_results_are_two_ops(name: str) -> None:
    """``trace`` itself holds loss and gradients against the module's."""
    torch.manual_seed(0)
    graph = trace(Model(WRITTEN[name]), {"x": torch.randn(4, 3, 6)})
    assert graph.inseparable is None
    calls = [n for n in graph.nodes.values() if n.op == "call_function"]
    assert all(isinstance(n.meta["val"], torch.Tensor) for n in calls)


def test_moments_of_the_whole_batch_mix_samples() -> None:
    torch.manual_seed(0)
    assert "var" in str(trace(Model(lambda h: torch.var_mean(h)[0] * h), {"x": torch.randn(4, 3, 6)}).inseparable)


@pytest.mark.parametrize("name", REFUSED)
def test_what_returns_several_tensors_is_refused_by_module_and_line(name: str) -> None:
    words = rf"can't be traced in .* at \S+:\d+ .*: aten\.{name}\S* returns several tensors"
    with pytest.raises(InputError, match=words):
        trace(Model(REFUSED[name]), {"x": torch.randn(4, 3, 6)})


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cells(x)[0].sum()


def test_recurrent_cells_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"can't be traced in cells at .*: aten\.lstm\.input returns several tensors"):
        trace(Recurrent(), {"x": torch.randn(4, 3, 6)})
