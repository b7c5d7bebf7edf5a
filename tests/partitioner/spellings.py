"""Losses of many spellings over one small net: those that are sums over samples, and those that mix samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

SEQ, WIDTH, CLASSES = 5, 8, 7
Loss = Callable[["Net", torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """Logits z (b, s, v) for labels y (b, s); ``loss(net, z, y, h)`` also sees what the head reads."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        self.middle = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.head, self.other = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("weights", torch.linspace(0.5, 1.5, CLASSES))
        self.loss = loss

    def forward(self, x: torch.Tensor, y: torch.Tensor, m: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        h = self.embedding(x) + self.middle(self.embedding(x))
        self.m, self.n = m, n
        loss = self.loss(self, self.head(h), y, h)
        del self.m, self.n
        return loss


def make_batch(samples: int) -> dict[str, torch.Tensor]:
    """Ids, labels that count unevenly, their mask and a number."""
    generator = torch.Generator().manual_seed(samples)
    x = torch.randint(CLASSES, (samples, SEQ), generator=generator)
    y = torch.randint(CLASSES, (samples, SEQ), generator=generator)
    mask = torch.arange(SEQ)[None] <= torch.arange(samples)[:, None] % SEQ  # another count in each sample
    return {"x": x, "y": y.masked_fill(~mask, -100), "m": mask.float(), "n": torch.tensor(11.0)}


def _flat(z: torch.Tensor, y: torch.Tensor, **how: object) -> torch.Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten(), **how)  # type: ignore[arg-type]


def _safe(y: torch.Tensor) -> torch.Tensor:
    return y.clamp(min=0)


def _soft(y: torch.Tensor) -> torch.Tensor:
    return F.one_hot(_safe(y), CLASSES).to(torch.get_default_dtype()) * 0.9 + 0.02


def _each(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(z.transpose(1, 2), _safe(y), reduction="none")


def _sum(net: Net, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (_each(z, y) * net.m).sum()


def _of_classes(net: Net, z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of losses and count of each class; all occur."""
    each = F.one_hot(_safe(y), CLASSES) + 0.1
    return (_each(z, y)[..., None] * each).sum((0, 1)), each.sum((0, 1))


def _likely(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(z.transpose(1, 2), y, reduction="none").sum(1)


def _preferred(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    return -F.logsigmoid(0.1 * (chosen - rejected)).mean()


SEPARATE: dict[str, Loss] = {
    "cross entropy": lambda net, z, y, h: _flat(z, y),
    "classes second": lambda net, z, y, h: F.cross_entropy(z.transpose(1, 2), y),
    "smoothed": lambda net, z, y, h: _flat(z, y, label_smoothing=0.1),
    "another ignored": lambda net, z, y, h: _flat(z, _safe(y), ignore_index=3),
    "class weights": lambda net, z, y, h: _flat(z, y, weight=net.weights),
    "class weights, smoothed": lambda net, z, y, h: _flat(z, y, weight=net.weights, label_smoothing=0.2),
    "weighted sum over tokens": lambda net, z, y, h: _flat(z, y, weight=net.weights, reduction="sum") / y.numel(),
    "probabilities": lambda net, z, y, h: F.cross_entropy(z.flatten(0, 1), _soft(y).flatten(0, 1)),
    "probabilities, smoothed": lambda net, z, y, h: F.cross_entropy(
        z.flatten(0, 1), _soft(y).flatten(0, 1), weight=net.weights, label_smoothing=0.1
    ),
    "nll of log softmax": lambda net, z, y, h: F.nll_loss(F.log_softmax(z, -1).flatten(0, 1), y.flatten()),
    "nll, weighted": lambda net, z, y, h: F.nll_loss(F.log_softmax(z, -1).transpose(1, 2), y, weight=net.weights),
    "nll of something else": lambda net, z, y, h: F.nll_loss(torch.tanh(z).flatten(0, 1), y.flatten()),
    "gathered log softmax": lambda net, z, y, h: -z.log_softmax(-1).gather(-1, _safe(y)[..., None]).squeeze(-1).mean(),
    "log sum less the logit": lambda net, z, y, h: (
        torch.logsumexp(z, -1) - z.gather(-1, _safe(y).unsqueeze(-1)).squeeze(-1)
    ).mean(),
    "logit less the log sum": lambda net, z, y, h: -(
        z.gather(-1, _safe(y).unsqueeze(-1)).squeeze(-1) - torch.logsumexp(z, -1)
    ).mean(),
    "none then mean": lambda net, z, y, h: _flat(z, y, reduction="none").mean(),
    "masked mean": lambda net, z, y, h: (_flat(z, _safe(y), reduction="none") * net.m.flatten()).sum() / net.m.sum(),
    "clamped count": lambda net, z, y, h: _flat(z, y, reduction="sum") / (y != -100).sum().clamp(min=1),
    "maximum with one": lambda net, z, y, h: _flat(z, y, reduction="sum")
    / torch.maximum((y != -100).sum(), torch.ones((), dtype=torch.int64)),
    "tokens of the batch": lambda net, z, y, h: _flat(z, y, reduction="sum") / y.numel(),
    "samples of the batch": lambda net, z, y, h: _flat(z, y, reduction="sum") / len(y),
    "times the reciprocal": lambda net, z, y, h: _flat(z, y, reduction="sum") * (1.0 / y.shape[0]),
    "unbiased": lambda net, z, y, h: _flat(z, y, reduction="sum") / (y.numel() - 1),
    "a tensor of the batch size": lambda net, z, y, h: _flat(z, y, reduction="sum") / torch.tensor(float(len(y))),
    "given count": lambda net, z, y, h: _flat(z, y, reduction="sum") / net.n,
    "mean of samples' means": lambda net, z, y, h: (
        (F.cross_entropy(z.transpose(1, 2), y, reduction="none") * net.m).sum(1) / net.m.sum(1)
    ).mean(),
    "chunks": lambda net, z, y, h: sum(  # type: ignore[return-value]
        _flat(a, b, reduction="sum") for a, b in zip(z.split(2, 1), y.split(2, 1), strict=True)
    ) / (y != -100).sum(),
    "two heads": lambda net, z, y, h: _flat(z, y) + 0.3 * _flat(net.other(h[:, :-1]), y[:, 1:]),
    "a token loss and a sample loss": lambda net, z, y, h: _flat(z, y) + F.cross_entropy(net.other(h.mean(1)), y[:, 0]),
    "stacked losses": lambda net, z, y, h: torch.stack([_flat(z, y), _flat(net.other(h), y)]).mean(),
    "learned weight": lambda net, z, y, h: _flat(z, y) * torch.exp(-net.scale) + net.scale,
    "z loss": lambda net, z, y, h: _flat(z, y) + 1e-2 * torch.logsumexp(z, -1).pow(2).mean(),
    "penalty on weights": lambda net, z, y, h: _flat(z, y) + 1e-2 * sum(p.pow(2).sum() for p in net.head.parameters()),
    "less a constant": lambda net, z, y, h: _flat(z, y) - 0.5,
    "constant less": lambda net, z, y, h: 0.5 - _flat(z, y),
    "add with alpha": lambda net, z, y, h: torch.add(_flat(z, y), net.scale.square(), alpha=2),
    "scaled": lambda net, z, y, h: _flat(z, y) * 0.5,
    "mse": lambda net, z, y, h: F.mse_loss(z, _soft(y)),
    "mse of sums": lambda net, z, y, h: F.mse_loss(z, _soft(y), reduction="sum") / len(y),
    "l1": lambda net, z, y, h: F.l1_loss(z, _soft(y)),
    "smooth l1": lambda net, z, y, h: F.smooth_l1_loss(z, _soft(y)),
    "huber": lambda net, z, y, h: F.huber_loss(z, _soft(y), delta=0.5),
    "bce": lambda net, z, y, h: F.binary_cross_entropy_with_logits(z, _soft(y)),
    "bce, weighted": lambda net, z, y, h: F.binary_cross_entropy_with_logits(z, _soft(y), pos_weight=net.weights),
    "bce of probabilities": lambda net, z, y, h: F.binary_cross_entropy(z.sigmoid(), _soft(y)),
    "kl, batch mean": lambda net, z, y, h: F.kl_div(
        z.log_softmax(-1).flatten(0, 1), _soft(y).flatten(0, 1), reduction="batchmean"
    ),
    "kl, log target": lambda net, z, y, h: F.kl_div(
        z.log_softmax(-1), _soft(y).log(), reduction="sum", log_target=True
    ) / z.numel(),
    "cosine": lambda net, z, y, h: (1 - F.cosine_similarity(z, _soft(y), dim=-1)).mean(),
    "written out": lambda net, z, y, h: ((z - _soft(y)) ** 2).sum((1, 2)).mean(),
    "two counts": lambda net, z, y, h: (
        _flat(z, y, reduction="sum") / (y != -100).sum() + (h.pow(2).sum(-1) * net.m).sum() / (net.m * 2).sum()
    ),
    "a count of counted": lambda net, z, y, h: (
        _flat(z, _safe(y), reduction="none") * (net.m / net.m.mean()).flatten()
    ).sum() / (net.m / net.m.mean()).square().sum(),
    "numbers of the batch, made as tensors": lambda net, z, y, h: _flat(z, y, reduction="sum")
    / torch.ones(len(y), SEQ).sum() + torch.ones(len(y)).sum() * net.scale.square(),
    "nothing of the batch": lambda net, z, y, h: net.scale.square(),
    "none where nothing counts": lambda net, z, y, h: torch.where(net.m.sum() > 0, _sum(net, z, y) / net.m.sum(), 0.0),
    "another value where nothing counts": lambda net, z, y, h: torch.where(
        net.m.sum() == 0, net.scale, _sum(net, z, y) / net.m.sum()
    ),
    "zeros like the sum where nothing counts": lambda net, z, y, h: torch.where(
        net.m.sum() > 0, _sum(net, z, y) / net.m.sum(), torch.zeros_like(_sum(net, z, y))
    ),
    "filled where nothing counts": lambda net, z, y, h: (_sum(net, z, y) / net.m.sum()).masked_fill(
        net.m.sum() == 0, 0.5
    ),
    "a number of what may be none": lambda net, z, y, h: torch.nan_to_num(_sum(net, z, y) / net.m.sum()),
    "a number of what may be none, and a term": lambda net, z, y, h: (_sum(net, z, y) / net.m.sum()).nan_to_num(0.5)
    + net.scale.square(),
    "a number of what may be none, of each class": lambda net, z, y, h: (
        torch.nan_to_num(_of_classes(net, z, y)[0] / _of_classes(net, z, y)[1]).mean()
    ),
    "a number of a sum": lambda net, z, y, h: torch.nan_to_num(_flat(z, y)) + torch.nan_to_num(z.square().sum(), 1.0),
    "where it is no number": lambda net, z, y, h: (
        lambda loss: torch.where(loss.isnan(), torch.zeros_like(loss), loss)
    )(_sum(net, z, y) / net.m.sum()),
    "where it is finite": lambda net, z, y, h: (lambda loss: loss.masked_fill(~loss.isfinite(), 0.0))(
        _sum(net, z, y) / net.m.sum()
    ),
    "the larger of count and one": lambda net, z, y, h: _sum(net, z, y)
    / torch.max(net.m.sum(), torch.ones_like(net.m.sum())),
    "count and a little": lambda net, z, y, h: _sum(net, z, y) / (net.m.sum() + 1e-8),
    "if any counts": lambda net, z, y, h: _flat(z, y) * (y != -100).any()
    + torch.where((y == -100).all(), 0.0, _flat(net.other(h), y)),
    "count of what is not zero": lambda net, z, y, h: _sum(net, z, y) / torch.count_nonzero(net.m),
    "sum of numbers": lambda net, z, y, h: torch.nansum(
        _each(z, y).masked_fill(net.m == 0, torch.nan)
    ) / net.m.sum(),
    "a tensor full of the batch size": lambda net, z, y, h: _flat(z, y, reduction="sum") / torch.full((), len(y))
    + _flat(z, y, reduction="sum") / z.new_full((1,), float(len(y))).sum(),
    "each sample by the batch size": lambda net, z, y, h: (
        _each(z, y).sum(1) * torch.full((len(y),), 1 / len(y))
    ).sum(),
    "added along tokens": lambda net, z, y, h: z.new_zeros(len(y), CLASSES)
    .scatter_add(1, _safe(y), _each(z, y)).square().mean(),
    "a sum by the number of pairs": lambda net, z, y, h: _flat(z, y, reduction="sum") / (len(y) * (len(y) - 1) / 2),
}
MIXING: dict[str, Loss] = {
    "balance": lambda net, z, y, h: _flat(z, y) + (z.softmax(-1).mean((0, 1)) * z.softmax(-1).mean((0, 1))).sum(),
    "square of the loss": lambda net, z, y, h: _flat(z, y).square(),
    "root of the mean": lambda net, z, y, h: F.mse_loss(z, _soft(y)).sqrt(),
    "contrast": lambda net, z, y, h: F.cross_entropy(h.mean(1) @ h.mean(1).T, torch.arange(len(y))),
    "as many features as samples": lambda net, z, y, h: h[..., : len(y)].square().sum() / y.numel(),
    "as many rows of a weight": lambda net, z, y, h: _flat(z, y) + net.head.weight[: len(y)].square().sum(),
    "a weight for each sample": lambda net, z, y, h: _flat(z, y)
    + net.head.weight.expand(len(y), CLASSES, WIDTH).square().sum(),
    "a vector of the batch size": lambda net, z, y, h: _flat(z, y)
    + (torch.ones(len(y), CLASSES).sum(0) * net.head.bias).sum(),
    "in-batch variance": lambda net, z, y, h: z.var(0).mean(),
    "a sample's place": lambda net, z, y, h: (z.mean((1, 2)) * torch.arange(len(y))).sum(),
    "loss by its own value": lambda net, z, y, h: _flat(z, y) / _flat(z, y).detach(),
    "preference, halves": lambda net, z, y, h: _preferred(*_likely(z, y).chunk(2, 0)),
    "preference, first and last half": lambda net, z, y, h: _preferred(
        _likely(z, y)[: len(y) // 2], _likely(z, y)[len(y) // 2 :]
    ),
    "preference, narrow": lambda net, z, y, h: _preferred(
        *(_likely(z, y).narrow(0, n * (len(y) // 2), len(y) // 2) for n in range(2))
    ),
    "preference, split logits": lambda net, z, y, h: _preferred(
        *(_likely(a, b) for a, b in zip(z.split(len(z) // 2), y.split(len(y) // 2), strict=True))
    ),
    "preference, picked": lambda net, z, y, h: _preferred(
        *(_likely(z, y)[torch.arange(len(y) // 2) + n * (len(y) // 2)] for n in range(2))
    ),
    "preference, pairs": lambda net, z, y, h: _preferred(*_likely(z, y).view(len(y) // 2, 2).unbind(1)),
    "preference, every other": lambda net, z, y, h: _preferred(_likely(z, y)[0::2], _likely(z, y)[1::2]),
    "preference and likelihood": lambda net, z, y, h: _preferred(*_likely(z, y).chunk(2))
    + _flat(z[: len(z) // 2], y[: len(y) // 2]),
    "contrast of halves": lambda net, z, y, h: F.cross_entropy(
        h.mean(1)[: len(h) // 2] @ h.mean(1)[len(h) // 2 :].T, torch.arange(len(h) // 2)
    ),
    "mean of all pairs": lambda net, z, y, h: (h.mean(1)[:, None] - h.mean(1)[None]).square().mean(),
    "pairs by their number": lambda net, z, y, h: (h.mean(1) @ h.mean(1).T).tanh().triu(1).sum()
    / (len(h) * (len(h) - 1) // 2),
    "distances": lambda net, z, y, h: torch.cdist(h.mean(1), h.mean(1).flip(0) + 1).mean(),
    "advantage": lambda net, z, y, h: (
        lambda r: -(_likely(z, y) * (r - r.mean()) / (r.std() + 1e-6)).mean()
    )(net.m.sum(1)),
    "advantage in groups": lambda net, z, y, h: (
        lambda r: -(_likely(z, y) * (r - r.mean(1, keepdim=True)).flatten()).mean()
    )(net.m.sum(1).view(-1, 2)),
    "scattered to rows": lambda net, z, y, h: z.new_zeros(y.numel())
    .index_add_(0, torch.arange(y.numel()), _each(z, y).flatten()).square().mean(),
    "scattered by class": lambda net, z, y, h: z.new_zeros(CLASSES)
    .index_add(0, _safe(y).flatten(), _each(z, y).flatten()).square().sum(),
    "put where a mask says": lambda net, z, y, h: torch.zeros_like(z)
    .masked_scatter_((net.m > 0)[..., None].expand_as(z), z).square().mean(),
    "padded along samples": lambda net, z, y, h: (F.pad(_each(z, y), (0, 0, 1, 0))[:-1] * _each(z, y)).mean(),
}
