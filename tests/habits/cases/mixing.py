"""Losses that mix the samples of a batch: equal where one micro-batch holds it whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import equal_unsplit, named
from cases.losses import Model, flat, spelled
from stack import Made
from torch import Tensor


def aux_of_means(batch: int) -> Made:
    """A balance term: the product of two means over the batch is no sum over samples."""

    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        mean = h.softmax(-1).mean((0, 1))
        return F.cross_entropy(*flat(z, y)) + 0.32 * (mean * mean).sum()

    return spelled(loss, batch)


def contrastive(batch: int) -> Made:
    """Every sample against all others."""

    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        a, b = F.normalize(h.mean(1), dim=-1), F.normalize(h[:, 0], dim=-1)
        return F.cross_entropy(a @ b.T / 0.1, torch.arange(len(a)))

    return spelled(loss, batch)


def preferences(batch: int) -> Made:
    """Direct preferences: chosen samples first, rejected ones behind them."""

    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        likely = -F.cross_entropy(z.transpose(1, 2), y, reduction="none").sum(1)
        chosen, rejected = likely[: len(y) // 2], likely[len(y) // 2 :]
        return -F.logsigmoid(0.1 * (chosen - rejected)).mean()

    return spelled(loss, batch)


def preferences_in_pairs(batch: int) -> Made:
    """Each chosen sample beside its rejected one, and the chosen ones' own likelihood."""

    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        likely = -F.cross_entropy(z.transpose(1, 2), y, reduction="none").mean(1)
        chosen, rejected = likely.view(-1, 2).unbind(1)
        return -F.logsigmoid(chosen - rejected).mean() - 0.1 * chosen.mean()

    return spelled(loss, batch)


def repelled(batch: int) -> Made:
    """The mean likeness of all pairs of samples, by their number."""

    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        a = F.normalize(h.mean(1), dim=-1)
        return F.cross_entropy(*flat(z, y)) + (a @ a.T).triu(1).sum() / (len(y) * (len(y) - 1) / 2)

    return spelled(loss, batch)


def exponent_of_mean(batch: int) -> Made:
    """Perplexity itself."""
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y)).mul(0.25).exp(), batch)


CASES = named(
    equal_unsplit(
        "mixes? samples|separate", aux_of_means, contrastive, exponent_of_mean, preferences, preferences_in_pairs,
        repelled,
    )
)  # fmt: skip
