from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from captured import Net, assert_equal, batch_of, plain

from partitioner.errors import InputError
from partitioner.user_code.outputs import loss_of


class Output(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor


@dataclasses.dataclass
class Record:
    logits: torch.Tensor
    objective: torch.Tensor
    auxiliary: torch.Tensor | None = None


class WithLoss:
    def __init__(self, loss: torch.Tensor) -> None:
        self.loss = loss


loss, logits, other = torch.tensor(1.0), torch.zeros(2, 3), torch.tensor(2.0)


@pytest.mark.parametrize(
    "output",
    [
        loss, (logits, loss), (loss, logits), [loss], {"loss": loss, "auxiliary": other}, {"objective": loss},
        Output(logits, loss), Record(logits, loss), WithLoss(loss), (logits, {"loss": loss}), (loss, torch.tensor(3)),
        {"loss": loss, "parts": {"loss": other}}, (logits, loss, None), ((loss,), (logits, [logits])),
    ],
)  # fmt: skip
def test_the_loss_is_the_one_scalar_or_the_one_called_so(output: Any) -> None:
    assert loss_of(output) is loss


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (logits, r"scalar loss.* it returned a tensor of shape \(2, 3\) and float32"),
        ((logits, None), "returned tuple"),
        ((loss, other), r"2 scalars \(0, 1\)"), (Record(logits, loss, other), "objective, auxiliary"), (3.0, "float"),
        ([{"loss": loss}, {"loss": other}], "0.loss, 1.loss"), (torch.tensor(3), "int64"), ({"loss": None}, "dict"),
    ],
)  # fmt: skip
def test_other_outputs_are_refused(output: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        loss_of(output)


def test_a_model_that_returns_logits_and_loss_is_traced() -> None:
    class Both(Net):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return self.last(x), super().forward(x, y)

    assert_equal(Both(plain, 2), batch_of())
