"""A comparison of graph and module that can tell, or is said not to have been made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import trace

WIDTH, CLASSES = 8, 5


class Net(nn.Module):
    """``loss`` is made of hidden values (b, s, w), logits (b, s, v) and labels."""

    def __init__(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.loss = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES), loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.first(x)
        return self.loss(h, self.last(h), y)


def batch(samples: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, WIDTH, generator=generator)
    return {"x": x, "y": torch.randint(CLASSES, (samples, 3), generator=generator)}


def entropy(h: Tensor, z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten())


def test_a_loss_that_is_no_number_compares_nothing_and_the_graph_says_so() -> None:
    given = batch()
    given["y"] = torch.full_like(given["y"], -100)
    (note,) = trace(Net(lambda h, z, y: entropy(h, z, y) * (2.0 if len(y) < 4 else 3.0)), given).notes
    assert note == "the graph was not compared with the module: on the example's samples its loss is nan"


def test_a_loss_that_is_all_but_zero_is_compared_by_what_it_is_the_difference_of() -> None:
    assert not trace(Net(lambda h, z, y: (z.logsumexp(-1) - (z - z.log_softmax(-1)).mean(-1)).mean()), batch()).notes


def test_a_module_that_changes_its_batch_is_compared_on_fresh_ones() -> None:
    def loss(h: Tensor, z: Tensor, y: Tensor) -> Tensor:
        y.add_(1).remainder_(CLASSES)
        return entropy(h, z, y)

    given = batch()
    before = {n: t.clone() for n, t in given.items()}
    assert not trace(Net(loss), given).notes
    assert all(torch.equal(given[n], t) for n, t in before.items())


def test_an_input_that_the_loss_does_not_read_is_not_what_grows() -> None:
    """Pairs need an even batch; labels could grow alone, and then the samples would be no samples."""
    graph = trace(Net(lambda h, z, y: F.softplus(z.mean((1, 2)).unflatten(0, (-1, 2)).diff(dim=1)).mean()), batch())
    assert "x" in graph.batched
