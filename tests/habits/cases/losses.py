"""Losses as people write them: sums over samples by counts that are sums over samples, and terms without any."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from case import equal, named
from stack import HIDDEN, VOCAB, Made, Stack, text, uneven
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor, Tensor, "Model"], Tensor]


class Model(Stack):
    """A stack whose loss is a function of logits, labels, the hidden states and the model."""

    def __init__(self, function: Loss) -> None:
        super().__init__()
        self.function = function

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        hidden = self.body(self.emb(tokens))
        return self.function(self.head(hidden), labels, hidden, self)


def spelled(function: Loss, batch: int) -> Made:
    """A model with a loss, on text."""
    return Model(function), text(batch)


def flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return logits.flatten(0, 1), labels.flatten()


def nll(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.nll_loss(F.log_softmax(z, -1).flatten(0, 1), y.flatten()), batch)


def log_softmax_gathered(batch: int) -> Made:
    return spelled(lambda z, y, h, m: -z.log_softmax(-1).gather(-1, y[..., None]).squeeze(-1).mean(), batch)


def logsumexp_minus_target(batch: int) -> Made:
    return spelled(lambda z, y, h, m: (z.logsumexp(-1) - z.gather(-1, y[..., None]).squeeze(-1)).mean(), batch)


def log_of_softmax(batch: int) -> Made:
    return spelled(lambda z, y, h, m: -(z.softmax(-1).log() * F.one_hot(y, VOCAB)).sum(-1).mean(), batch)


def none_then_mean(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y), reduction="none").mean(), batch)


def none_then_sum_by_size(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y), reduction="none").sum() / y.numel(), batch)


def mean_a_sample(batch: int) -> Made:
    """The mean of each sample's own mean, samples counting differently many labels."""

    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        each = F.cross_entropy(z.transpose(1, 2), y, reduction="none", ignore_index=-100)
        return (each.sum(1) / (y != -100).sum(1)).mean()

    return Model(loss), uneven(batch)


def masked_mean(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        kept = (y % 3 != 0).flatten().float()
        return (F.cross_entropy(*flat(z, y), reduction="none") * kept).sum() / kept.sum()

    return spelled(loss, batch)


def masked_mean_clamped(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        kept = (y % 3 != 0).flatten().float()
        return (F.cross_entropy(*flat(z, y), reduction="none") * kept).sum() / kept.sum().clamp(min=1)

    return spelled(loss, batch)


def count_with_epsilon(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        kept = (y % 3 != 0).flatten().float()
        return (F.cross_entropy(*flat(z, y), reduction="none") * kept).sum() / (kept.sum() + 1e-5)

    return spelled(loss, batch)


def nothing_where_none_counts(batch: int) -> Made:
    """Guards against a batch of no labels: a choice, and what is no number made one."""

    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        kept = y != -100
        total = F.cross_entropy(*flat(z, y), reduction="sum")
        mean = torch.where(kept.any(), total / kept.sum(), torch.zeros_like(total))
        return mean + 0.1 * torch.nan_to_num((z.logsumexp(-1) * kept).sum() / kept.sum())

    return Model(loss), uneven(batch)


def kl_batchmean(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        target = F.one_hot(y, VOCAB).float().softmax(-1)
        return F.kl_div(F.log_softmax(z, -1).flatten(0, 1), target.flatten(0, 1), reduction="batchmean")

    return spelled(loss, batch)


def kl_log_target(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        target = (3 * F.one_hot(y, VOCAB).float()).log_softmax(-1)
        return F.kl_div(z.log_softmax(-1), target, reduction="none", log_target=True).sum(-1).mean()

    return spelled(loss, batch)


def soft_targets(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        return F.cross_entropy(z.flatten(0, 1), (5 * F.one_hot(y, VOCAB).float()).softmax(-1).flatten(0, 1))

    return spelled(loss, batch)


def class_weights(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y), weight=torch.linspace(0.5, 1.5, VOCAB)), batch)


def class_weights_and_ignored(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        return F.cross_entropy(*flat(z, y), weight=torch.linspace(0.5, 1.5, VOCAB), ignore_index=-1)

    return Model(loss), uneven(batch, -1)


def smoothing(batch: int) -> Made:
    """A vocabulary that two ranks do not divide, labels that count unevenly."""

    class Smooth(Stack):
        def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(*flat(logits, labels), label_smoothing=0.1, ignore_index=-1)

    return Smooth(67), uneven(batch, -1)


def mse(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.mse_loss(z, F.one_hot(y, VOCAB).float()), batch)


def l1(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.l1_loss(z, F.one_hot(y, VOCAB).float()), batch)


def smooth_l1(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.smooth_l1_loss(z, 3 * F.one_hot(y, VOCAB).float()), batch)


def huber_written_out(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        apart = (z - F.one_hot(y, VOCAB)).abs()
        return torch.where(apart < 0.5, apart.pow(2), apart - 0.25).mean()

    return spelled(loss, batch)


def bce(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.binary_cross_entropy_with_logits(z, F.one_hot(y, VOCAB).float()), batch)


def hinge(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.relu(1 - z * (2.0 * F.one_hot(y, VOCAB) - 1)).mean(), batch)


def two_heads(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        later = F.cross_entropy(m.second(h[:, :-1]).flatten(0, 1), y[:, 1:].flatten())
        return F.cross_entropy(*flat(z, y)) + 0.3 * later

    module = Model(loss)
    module.second = nn.Linear(HIDDEN, VOCAB)
    return module, uneven(batch)


def token_and_sample_losses(batch: int) -> Made:
    """One loss counts tokens, the other samples."""

    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        return F.cross_entropy(*flat(z, y)) + F.cross_entropy(m.second(h.mean(1)), y[:, 0])

    module = Model(loss)
    module.second = nn.Linear(HIDDEN, VOCAB)
    return module, text(batch)


def mean_of_depths(batch: int) -> Made:
    """Three predictions of growing distance, averaged."""

    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        parts = [F.cross_entropy(z[:, : -n or None].flatten(0, 1), y[:, n:].flatten()) for n in range(3)]
        return torch.stack(parts).mean()

    return Model(loss), uneven(batch)


def z_loss(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y)) + 1e-2 * z.logsumexp(-1).pow(2).mean(), batch)


def z_loss_masked(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        kept = y != -100
        square = torch.where(kept, z.logsumexp(-1).pow(2), 0.0).sum() / kept.sum()
        return F.cross_entropy(*flat(z, y)) + 1e-2 * square

    return Model(loss), uneven(batch)


def weight_penalty(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y)) + 1e-2 * m.head.weight.pow(2).sum(), batch)


def penalty_on_all(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        return F.cross_entropy(*flat(z, y)) + 1e-4 * sum(p.pow(2).sum() for p in m.parameters())

    return spelled(loss, batch)


def orthogonality_penalty(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        w = m.head.weight
        return F.cross_entropy(*flat(z, y)) + 1e-3 * (w.T @ w - torch.eye(HIDDEN)).pow(2).sum()

    return spelled(loss, batch)


def minus_constant(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y)) - 0.5, batch)


def scaled(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y)) * 0.5, batch)


def negated_twice(batch: int) -> Made:
    return spelled(lambda z, y, h, m: -F.cross_entropy(*flat(z, y), reduction="sum") / -y.numel(), batch)


def in_chunks(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        parts = zip(z.chunk(2, 1), y.chunk(2, 1), strict=True)
        return sum(F.cross_entropy(*flat(a, b), reduction="sum") for a, b in parts) / y.numel()  # type: ignore[return-value]

    return spelled(loss, batch)


def sum_over_batch(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y), reduction="sum") / y.shape[0], batch)


def sum_over_tokens(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y), reduction="sum") / y.numel(), batch)


def sum_over_len(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y), reduction="sum") / len(y) / y.size(1), batch)


def scaled_by_batch(batch: int) -> Made:
    """A number of Python multiplies: the mean times the number of samples."""
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y)) * (y.shape[0] / 8), batch)


def sum_over_count(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        return F.cross_entropy(*flat(z, y), reduction="sum") / (y != -100).sum()

    return Model(loss), uneven(batch)


def sum_over_count_of_other_id(batch: int) -> Made:
    def loss(z: Tensor, y: Tensor, h: Tensor, m: Model) -> Tensor:
        return F.cross_entropy(*flat(z, y), reduction="sum", ignore_index=0) / y.ne(0).float().sum()

    return spelled(loss, batch)


def sum_of_all(batch: int) -> Made:
    return spelled(lambda z, y, h, m: F.cross_entropy(*flat(z, y), reduction="sum"), batch)


CASES = named(
    equal(
        nll, log_softmax_gathered, logsumexp_minus_target, log_of_softmax, none_then_mean, none_then_sum_by_size,
        mean_a_sample, masked_mean, masked_mean_clamped, count_with_epsilon,
        nothing_where_none_counts, kl_batchmean, kl_log_target, soft_targets,
        class_weights, class_weights_and_ignored, smoothing, mse, l1, smooth_l1, huber_written_out, bce, hinge,
        two_heads, token_and_sample_losses, mean_of_depths, z_loss, z_loss_masked, weight_penalty, penalty_on_all,
        orthogonality_penalty, minus_constant, scaled, negated_twice, in_chunks, sum_over_batch, sum_over_tokens,
        sum_over_len, scaled_by_batch, sum_over_count, sum_over_count_of_other_id, sum_of_all,
    ),
)  # fmt: skip
