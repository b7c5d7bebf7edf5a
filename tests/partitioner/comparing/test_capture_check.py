"""A graph that is not its module is refused, the module where they part named; what was not compared is a note."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from models import SWEEP, make
from torch import fx, nn
from torch.nn import functional as F

from partitioner import trace
from partitioner.errors import InputError

CAPTURE = importlib.import_module("partitioner.tracing.capture")
CHECK = importlib.import_module("partitioner.comparing.capture_check")


class Net(nn.Module):
    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8, device=device), nn.Linear(8, 5, device=device)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.second(self.first(x).tanh()), y)


def _batch() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), "y": torch.arange(4)}


def _scaled(monkeypatch: pytest.MonkeyPatch, module: str, factor: float) -> None:
    """A pass that gets the products of one module wrong."""
    right = CAPTURE.normal_ops

    def wrong(captured: fx.GraphModule, buffers: Any) -> None:
        right(captured, buffers)
        for node in [n for n in captured.graph.nodes if n.target == torch.ops.aten.linear.default]:
            if node.meta["modules"][-1] == module:
                with captured.graph.inserting_after(node):
                    new = captured.graph.call_function(torch.ops.aten.mul.Tensor, (node, factor))
                new.meta = dict(node.meta)
                node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)

    monkeypatch.setattr(CAPTURE, "normal_ops", wrong)


@pytest.mark.parametrize("module", ["first", "second"])
@pytest.mark.parametrize("factor", [2.0, 1 + 1e-6])
def test_another_graph_is_refused_and_the_module_named(
    monkeypatch: pytest.MonkeyPatch, module: str, factor: float
) -> None:  # fmt: skip
    _scaled(monkeypatch, module, factor)
    named = f", first in {module};" if factor > 1.5 else ""
    with pytest.raises(InputError, match=f"what was traced is not the module: .*{named}"):
        trace(Net(), _batch())
    trace(Net(), _batch(), compare=False)


def test_an_equal_graph_has_nothing_to_say() -> None:
    assert trace(Net(), _batch()).notes == ()


def test_what_is_not_compared_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "on the meta device" in "".join(trace(Net("meta"), _batch()).notes)
    monkeypatch.setattr(CHECK, "MOST_FLOPS", 1.0)
    assert "it would take" in "".join(trace(Net(), _batch()).notes)
    monkeypatch.setattr(CHECK, "MOST_PARAMETERS", 10)
    assert "more than 10" in "".join(trace(Net(), _batch()).notes)


def test_a_module_that_fails_itself_is_told_in_one_line() -> None:
    class Picky(Net):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_exporting():
                raise IndexError("only while traced")
            return super().forward(x, y)

    with pytest.raises(InputError, match=r"Picky itself fails on a batch of x \(2, 6\), y \(2,\): IndexError: only"):
        trace(Picky(), _batch())




@pytest.mark.parametrize("name", SWEEP)
def test_public_models_are_compared_and_equal(name: str) -> None:
    assert trace(*make(name, dropout=0.1)).notes == ()
