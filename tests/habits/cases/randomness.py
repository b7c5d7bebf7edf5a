"""Random numbers in forward: drawn by key as dropout is, or refused; and modes of their own."""

from __future__ import annotations

import random

import numpy
import torch
import torch.nn.functional as F
from case import equal, equal_or_refused, named, refused
from stack import HIDDEN, Made, Stack, text
from torch import Tensor, nn

NAMED = "(?i)rand|bernoulli|dropout|draw|normal|noise"


class Frozen(Stack):
    """A frozen encoder in eval mode inside a model that trains, its dropout asleep."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Dropout(0.5)).requires_grad_(False)
        self.encoder.eval()

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.head(self.body(self.encoder(self.emb(tokens)))), labels)


class Held(Frozen):
    """``train`` keeps the encoder's mode."""

    def train(self, mode: bool = True) -> Held:
        super().train(mode)
        self.encoder.eval()
        return self


def frozen_eval(batch: int) -> Made:
    return Held(), text(batch)


def frozen_eval_by_hand(batch: int) -> Made:
    return Frozen(), text(batch)


def eval_of_all(batch: int) -> Made:
    """The whole model in eval mode."""
    return Frozen().eval(), text(batch)


def dropout_of_zero(batch: int) -> Made:
    class Still(Stack):
        def logits(self, tokens: Tensor) -> Tensor:
            return self.head(F.dropout(self.body(self.emb(tokens)), 0.0, self.training))

    return Still(), text(batch)


class Noisy(Stack):
    """``noise``, none here, changes the embedded tokens."""

    def noise(self, x: Tensor) -> Tensor:
        return x

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.head(self.body(self.noise(self.emb(tokens)))), labels)


def dropout(batch: int) -> Made:
    class Module(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.2)

        def noise(self, x: Tensor) -> Tensor:
            return self.drop(x)

    return Module(), text(batch)


def attention_dropout(batch: int) -> Made:
    class Module(Noisy):
        def noise(self, x: Tensor) -> Tensor:
            q = x.unflatten(-1, (4, -1)).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, q, q, dropout_p=0.2, is_causal=True)
            return x + y.transpose(1, 2).flatten(2)

    return Module(), text(batch)


def jitter(batch: int) -> Made:
    class Module(Noisy):
        def noise(self, x: Tensor) -> Tensor:
            return x + 0.1 * torch.rand_like(x)

    return Module(), text(batch)


def gaussian(batch: int) -> Made:
    class Module(Noisy):
        def noise(self, x: Tensor) -> Tensor:
            return x + 0.1 * torch.randn(x.shape)

    return Module(), text(batch)


def uniform_in_place(batch: int) -> Made:
    class Module(Noisy):
        def noise(self, x: Tensor) -> Tensor:
            return x * torch.empty_like(x).uniform_(0.9, 1.1)

    return Module(), text(batch)


def drop_path(batch: int) -> Made:
    """Stochastic depth: a whole sample's branch goes (timm)."""

    class Module(Noisy):
        def noise(self, x: Tensor) -> Tensor:
            kept = x.new_empty((x.shape[0], 1, 1)).bernoulli_(0.8)
            return x + 0.5 * x * kept / 0.8

    return Module(), text(batch)


def label_drop(batch: int) -> Made:
    """Some samples lose their tokens (classifier-free guidance)."""

    class Dropped(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            gone = torch.rand(tokens.shape[0], device=tokens.device) < 0.3
            return super().forward(torch.where(gone[:, None], torch.zeros_like(tokens), tokens), labels)

    return Dropped(), text(batch)


def random_ids(batch: int) -> Made:
    class Replaced(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            other = torch.randint_like(tokens, 64)
            return super().forward(torch.where(torch.rand(tokens.shape) < 0.1, other, tokens), labels)

    return Replaced(), text(batch)


def permutation(batch: int) -> Made:
    class Shuffled(Noisy):
        def noise(self, x: Tensor) -> Tensor:
            return x[:, torch.randperm(x.shape[1])]

    return Shuffled(), text(batch)


def gumbel(batch: int) -> Made:
    class Module(Noisy):
        def noise(self, x: Tensor) -> Tensor:
            return x + F.gumbel_softmax(x, tau=1.0)

    return Module(), text(batch)


def layer_drop(batch: int) -> Made:
    """Blocks skipped by Python's own random numbers."""

    class Skipping(Stack):
        def body(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x if random.random() < 0.5 else block(x)
            return self.norm(x)

    return Skipping(), text(batch)


def layer_drop_by_torch(batch: int) -> Made:
    """A number of torch decides what Python does."""

    class Skipping(Stack):
        def body(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x if torch.rand(()).item() < 0.5 else block(x)
            return self.norm(x)

    return Skipping(), text(batch)


def scale_by_python(batch: int) -> Made:
    class Module(Noisy):
        def noise(self, x: Tensor) -> Tensor:
            return x * random.uniform(0.5, 1.5)

    return Module(), text(batch)


def scale_by_numpy(batch: int) -> Made:
    class Module(Noisy):
        def noise(self, x: Tensor) -> Tensor:
            return x * float(numpy.random.rand())

    return Module(), text(batch)


CASES = named(
    equal(frozen_eval, frozen_eval_by_hand, eval_of_all, dropout_of_zero),
    equal_or_refused(
        NAMED, dropout, attention_dropout, jitter, gaussian, uniform_in_place, drop_path, label_drop, random_ids,
        permutation, gumbel,
    ),
    refused("(?i)random|draw|item|data-dependent|differ", layer_drop, layer_drop_by_torch, scale_by_python,
            scale_by_numpy),
)  # fmt: skip
