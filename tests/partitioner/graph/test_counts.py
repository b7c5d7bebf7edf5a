"""Losses of many spellings: micro-batches of the graph, added up, are the eager module on the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from partitioner.comparing.graph_float64 import promote
from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.graph.interpret import arguments, step_values
from partitioner.graph.resize_batch import resize
from partitioner.graph.step_inputs import BATCH_SHARE, SAMPLE_COUNT
from partitioner.tracing.trace import trace

TRACED, MICRO, MANY = 4, 2, 3  # samples traced, samples of a micro-batch, micro-batches
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


def _batch(samples: int) -> dict[str, torch.Tensor]:
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
}


def _of(loss: Loss) -> tuple[Net, Graph]:
    torch.manual_seed(0)
    net = Net(loss)
    return net, trace(net, _batch(TRACED))


def _in_micro_batches(net: Net, graph: Graph, batch: dict[str, torch.Tensor], micro: int) -> list[torch.Tensor]:
    """Loss and gradients, as an engine adds them up."""
    graph = resize(promote(graph), micro)
    samples = len(batch["x"])
    rows = [
        {n: t[i : i + micro] if n in graph.batched else t for n, t in batch.items()} for i in range(0, samples, micro)
    ]
    own = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    values = [step_values(graph, row) for row in rows]
    for value in values:
        value[SAMPLE_COUNT] = torch.tensor(samples)
        value[BATCH_SHARE] = torch.tensor(micro / samples, dtype=torch.float64)
    for count in graph.counts:
        buffers = {f"buffer:{n}": b for n, b in graph.buffers.items()}
        whole = sum(count.module(*({**buffers, **v}[n] for n in count.arguments)) for v in values)
        for value in values:
            value[count.name] = whole  # type: ignore[assignment]
    losses = [graph.module(*arguments(graph, own, value)) for value in values]
    loss = sum(one[0] if isinstance(one, tuple) else one for one in losses)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in own.values())]


def _eagerly(net: Net, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    loss = net(**batch)
    loss.backward()
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters())]


@pytest.fixture
def _float64() -> object:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", SEPARATE)
def test_micro_batches_add_up_to_the_eager_module(name: str) -> None:
    net, graph = _of(SEPARATE[name])
    assert graph.inseparable is None
    batch = _batch(MICRO * MANY)
    batch = {n: t.double() if t.is_floating_point() else t for n, t in batch.items()}
    found, wanted = _in_micro_batches(net, graph, batch, MICRO), _eagerly(net, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_samples_is_named_and_right_in_one_micro_batch(name: str) -> None:
    net, graph = _of(MIXING[name])
    assert graph.inseparable is not None
    batch = {n: t.double() if t.is_floating_point() else t for n, t in _batch(6).items()}
    found, wanted = _in_micro_batches(net, graph, batch, 6), _eagerly(net, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [n for n in SEPARATE if "nll of log" in n or "log s" in n or n == "none then mean"])
def test_every_spelling_of_a_cross_entropy_is_one_op(name: str) -> None:
    _, graph = _of(SEPARATE[name])
    assert any(n.target == torch.ops.partitioner.cross_entropy.default for n in graph.nodes.values())
    assert not any("log_softmax" in str(n.target) or "logsumexp" in str(n.target) for n in graph.nodes.values())


def test_a_number_of_another_law_is_refused() -> None:
    with pytest.raises(InputError, match=r"aten.mul.Tensor in the model has the number 2.0 for 4 samples and 2.236"):
        _of(lambda net, z, y, h: _flat(z, y) * len(y) ** 0.5)
