"""Masks become flags whatever their size, computed block by block where they do not lie in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import Graph, trace
from partitioner.normalize import attention_masks

SEQ, WIDTH = 12, 8
Mask = Callable[[int], Tensor]


def causal(n: int) -> Tensor:
    return torch.arange(n)[None, :] <= torch.arange(n)[:, None]


def window(n: int) -> Tensor:
    return causal(n) & (torch.arange(n)[None, :] > torch.arange(n)[:, None] - 3)


def added(n: int) -> Tensor:
    return torch.where(causal(n), 0.0, torch.finfo(torch.float32).min)


def biased(n: int) -> Tensor:
    return torch.where(causal(n), 0.5, torch.finfo(torch.float32).min)


def everything(n: int) -> Tensor:
    return (torch.arange(n)[None, :] >= 0) & (torch.arange(n)[:, None] >= 0)


def later(n: int) -> Tensor:
    """Causal but for the last row."""
    return causal(n) & ((torch.arange(n)[None, :] > 0) | (torch.arange(n)[:, None] < n - 1))


class Model(nn.Module):
    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask, self.qkv = mask, nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (t.unsqueeze(1) for t in self.qkv(x).chunk(3, -1))
        mask = self.mask(x.shape[1])[None, None].expand(x.shape[0], 1, -1, -1)
        return F.mse_loss(F.scaled_dot_product_attention(q, k, v, mask).squeeze(1), y)


def flags(mask: Mask) -> tuple[Graph, bool, bool]:
    """Whether there is a mask still, and whether attention is causal by itself."""
    x = torch.zeros(2, SEQ, WIDTH)
    graph = trace(Model(mask), {"x": x, "y": x})
    (node,) = (n for n in graph.module.graph.nodes if "attention" in str(n.target))
    return graph, len(node.args) > 3 and node.args[3] is not None, len(node.args) > 5 and bool(node.args[5])


WANTED: list[tuple[Mask, bool, bool]] = [
    (causal, False, True), (added, False, True), (everything, False, False), (window, True, False),
    (biased, True, False), (later, True, False),
]  # fmt: skip


@pytest.mark.parametrize("most", [attention_masks.MOST_ELEMENTS, 2 * SEQ], ids=["whole", "by rows"])
@pytest.mark.parametrize(("mask", "masked", "is_causal"), WANTED, ids=[row[0].__name__ for row in WANTED])
def test_a_mask_that_says_what_a_flag_says_is_one(
    mask: Mask, masked: bool, is_causal: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_masks, "MOST_ELEMENTS", most)
    graph, *found = flags(mask)
    assert found == [masked, is_causal]
    assert graph.inseparable is None


OTHERS: list[Mask] = [
    lambda n: torch.ones(n, n, dtype=torch.bool).tril(),
    lambda n: torch.full((n, n), torch.finfo(torch.float32).min).triu(1),
    lambda n: torch.zeros(n, n).masked_fill(~causal(n), torch.finfo(torch.float32).min),
    lambda n: causal(n)[torch.arange(n)],  # rows of a table
]


@pytest.mark.parametrize("mask", OTHERS, ids=["tril", "triu", "filled", "indexed"])
def test_masks_of_other_ops(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_masks, "MOST_ELEMENTS", 2 * SEQ)
    assert flags(mask)[1:] == (False, True)
    monkeypatch.setattr(attention_masks, "MOST_WHOLE", 2 * SEQ)
    assert flags(mask)[1:] in ((True, False), (False, True))  # it stays where it is too large to be looked at


def test_a_long_mask_is_not_held() -> None:
    """40,000 positions: a mask of 1.6 GB, of each sample; a window stays one, and its samples are alike."""

    class Long(Model):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x, y)

    x = torch.zeros(2, 40_000, WIDTH, device="meta")
    for mask, is_causal in ((causal, True), (window, False)):
        with torch.device("meta"):
            model = Long(mask)
        graph = trace(model, {"x": x, "y": x}, compare=False)
        (node,) = (n for n in graph.module.graph.nodes if "attention" in str(n.target))
        assert (len(node.args) > 5 and bool(node.args[5])) == is_causal
        assert graph.inseparable is None
