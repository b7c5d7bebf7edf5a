"""What follows from the batch size is held against a capture at the size that will be trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partitioner import trace
from partitioner.errors import InputError
from partitioner.samples.batch_laws import law_of

TOKENS = torch.arange(32).reshape(4, 8) % 16
Loss = Callable[[Tensor, Tensor, int], Tensor]


class Model(nn.Module):
    """A head over an embedding, and a loss that is told the batch size."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.embed, self.head, self.loss = nn.Embedding(16, 8), nn.Linear(8, 16), loss

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.head(self.embed(tokens)), labels, tokens.shape[0])


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


LAWLESS: dict[str, Loss] = {
    "capped": lambda z, y, b: _summed(z, y) / min(b, 6),
    "capped_from_below": lambda z, y, b: _summed(z, y) / max(b, 32),
    "branch": lambda z, y, b: _summed(z, y) * (2 if b > 32 else 1),
    "other_op": lambda z, y, b: _summed(z, y) if b < 32 else _summed(z.tanh(), y),
    "first_six": lambda z, y, b: _summed(z[:6], y[:6]),
    "constant": lambda z, y, b: _summed(z, y) / torch.tensor(float(min(b, 7))),
}
LAWFUL: dict[str, Loss] = {
    "mean": lambda z, y, b: _summed(z, y) / y.numel(),
    "per_sample": lambda z, y, b: _summed(z, y) / b,
    "growing": lambda z, y, b: _summed(z, y) * (b - 1),
    "constant": lambda z, y, b: _summed(z, y) / torch.tensor(float(b)),
    "reduced": lambda z, y, b: F.cross_entropy(z.flatten(0, 1), y.flatten()),
}


def _traced(loss: Loss, global_batch: int | None) -> None:
    trace(Model(loss), {"tokens": TOKENS, "labels": TOKENS.clone()}, compare=False, global_batch=global_batch)


@pytest.mark.parametrize("name", LAWLESS)
def test_what_small_batches_do_not_tell_is_refused_at_the_size_that_is_trained(name: str) -> None:
    with pytest.raises(InputError, match="64"):
        _traced(LAWLESS[name], 64)


@pytest.mark.parametrize("samples", [None, 1, 2, 3, 64, 4096])
@pytest.mark.parametrize("name", LAWFUL)
def test_one_law_for_all_sizes_is_taken(name: str, samples: int | None) -> None:
    _traced(LAWFUL[name], samples)


def test_a_number_that_small_batches_cap_differently_is_refused() -> None:
    with pytest.raises(InputError, match=r"div.Tensor in the model .* \(4 for 4, 4 for 5, 2 for 2\)"):
        _traced(lambda z, y, b: _summed(z, y) / min(b, 4), 2)


@pytest.mark.parametrize(
    ("x", "y", "at_64"),
    [(64, 80, 1024), (0.25, 0.2, 1 / 64), (3, 4, 63), (16, 25, 4096), (6, 10, 2016), (19, 24, 319), (2.0, 2.2, None)],
)
def test_laws_of_the_batch_size(x: float, y: float, at_64: float | None) -> None:
    law = law_of(x, y, (4, 5))
    assert (law and law.at(64)) == at_64
