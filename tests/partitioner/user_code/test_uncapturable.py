from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captured import Middle, Net, assert_equal, batch_of, plain, refused
from torch import nn

from partitioner import trace

VALUES: dict[str, tuple[Middle, str]] = {
    "mask": (lambda b, h, n: h + h[h > 0].sum(), "the size of the result depends on values"),
    "nonzero": (lambda b, h, n: h + h.nonzero().sum(), "the size of the result"),
    "where": (lambda b, h, n: h + torch.where(h > 0)[0].sum(), "the size of the result"),
    "masked_select": (lambda b, h, n: h + h.masked_select(h > 0).sum(), "the size of the result"),
    "unique": (lambda b, h, n: h + h.unique().sum(), "the size of the result"),
    "repeat": (lambda b, h, n: h + h.repeat_interleave((h[:, 0, 0] > 0).long(), 0).sum(), "the size of the result"),
    "branch": (lambda b, h, n: h if h.sum() > 0 else -h, "a branch, a size or a Python number"),
    "item": (lambda b, h, n: h * h.sum().item(), "a number is read out of a tensor"),
    "tolist": (lambda b, h, n: h * h.sum((1, 2)).tolist()[0], "a number is read out of a tensor"),
    "range": (lambda b, h, n: sum([h for _ in range(int(h.sum()))], h), "depend"),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_hangs_on_values_is_refused_in_one_line_and_silently(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    middle, words = VALUES[name]
    said = refused(Net(middle))
    assert words in said
    assert "one program serves every batch" in said
    assert "can't be traced in blocks.0 at" in said
    assert f'test_uncapturable.py:{middle.__code__.co_firstlineno} ("{name}"' in said
    assert capfd.readouterr() == ("", "")


def test_a_helper_is_blamed_with_its_module_and_its_own_line() -> None:
    def helper(h: torch.Tensor) -> torch.Tensor:
        return h[h > 0]

    assert "in blocks.0 at" in (said := refused(Net(lambda block, h, n: h + helper(h).sum())))
    assert "(return h[h > 0])" in said


@pytest.mark.parametrize("graph", [True, False])
def test_a_gradient_taken_in_the_forward_has_one_of_its_own_only_if_asked_for(graph: bool) -> None:
    def middle(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
        return h * torch.autograd.grad(h.pow(3).sum(), h, create_graph=graph, retain_graph=True)[0]

    assert_equal(Net(middle, 2), batch_of())


def test_a_backward_in_the_forward_is_refused() -> None:
    def middle(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
        h.sum().backward(retain_graph=True)
        return h

    assert "runs backward in its forward" in refused(Net(middle, 2))


def test_sparse_embeddings_are_refused_by_name() -> None:
    class Table(Net):
        def __init__(self, table: nn.Module) -> None:
            super().__init__(plain, 2)
            self.table = table

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x + self.table(y), y)

    said = refused(Table(nn.Embedding(5, 8, sparse=True)))
    assert "sparse=True" in said
    assert "in table at" in said
    bag = nn.EmbeddingBag(5, 8, sparse=True, mode="sum")
    assert "sparse=True" in refused(Table(nn.Sequential(bag, nn.Unflatten(0, (-1, 1)))))


def test_why_the_shortcut_was_not_taken_is_noted() -> None:
    class Weird(Net):
        """Does, when it is not exported, what fake tensors can't."""

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if tries and tries.pop():
                raise ValueError("not now")
            return super().forward(x, y)

    tries = [True]
    (note,) = trace(Weird(plain), batch_of()).notes
    assert note == "every block was traced by itself: the model can't run on fake tensors (ValueError: not now)"


def test_a_fault_of_the_shortcut_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Iterator[Any]:
        raise KeyError("a fault")

    monkeypatch.setattr("partitioner.tracing.repeated_modules._runs", broken)
    with pytest.raises(KeyError, match="a fault"):
        trace(Net(plain), batch_of())
