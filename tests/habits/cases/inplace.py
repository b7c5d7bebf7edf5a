"""In-place changes through views of activations: the value that was viewed changes too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import equal, equal_or_refused, named, refused
from stack import HIDDEN, Made, Stack, text
from torch import Tensor, nn


class Changed(Stack):
    """``change`` acts on the embedded tokens (b s d) in place."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.change = change

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.emb(tokens) * 1.0
        self.change(x)
        return self.loss(self.head(self.body(x)), labels)


def _by(change: Callable[[Tensor], object], batch: int) -> Made:
    return Changed(change), text(batch)


def chunk(batch: int) -> Made:
    return _by(lambda x: x.chunk(2, -1)[0].mul_(0.5), batch)


def split(batch: int) -> Made:
    return _by(lambda x: x.split(8, -1)[1].mul_(0.5), batch)


def detach(batch: int) -> Made:
    return _by(lambda x: x.detach().mul_(0.5), batch)


def data(batch: int) -> Made:
    return _by(lambda x: x.data.mul_(0.5), batch)


def sliced(batch: int) -> Made:
    return _by(lambda x: x[:, 2:].mul_(0.5), batch)


def slice_of_slice(batch: int) -> Made:
    return _by(lambda x: x[:, 2:][..., :8].mul_(0.5), batch)


def assigned_slice(batch: int) -> Made:
    def change(x: Tensor) -> None:
        x[:, 1:3] = 0.25

    return _by(change, batch)


def augmented_slice(batch: int) -> Made:
    def change(x: Tensor) -> None:
        x[..., ::2] *= 0.5

    return _by(change, batch)


def unbind(batch: int) -> Made:
    return _by(lambda x: x.unbind(1)[0].mul_(0.5), batch)


def select(batch: int) -> Made:
    return _by(lambda x: x[:, 0].mul_(0.5), batch)


def view(batch: int) -> Made:
    return _by(lambda x: x.view(x.shape[0], -1).mul_(0.5), batch)


def reshape_of_contiguous(batch: int) -> Made:
    return _by(lambda x: x.reshape(-1, HIDDEN).mul_(0.5), batch)


def flatten(batch: int) -> Made:
    return _by(lambda x: x.flatten(0, 1).add_(0.1), batch)


def transpose(batch: int) -> Made:
    return _by(lambda x: x.transpose(1, 2).mul_(0.5), batch)


def permute(batch: int) -> Made:
    return _by(lambda x: x.permute(2, 0, 1).mul_(0.5), batch)


def unsqueeze(batch: int) -> Made:
    return _by(lambda x: x.unsqueeze(1).mul_(0.5), batch)


def narrow(batch: int) -> Made:
    return _by(lambda x: x.narrow(2, 4, 8).mul_(0.5), batch)


def masked_fill(batch: int) -> Made:
    return _by(lambda x: x.masked_fill_(torch.arange(x.shape[1])[:, None] < 2, 0.1), batch)


def whole_relu(batch: int) -> Made:
    """No view: the value itself."""
    return _by(lambda x: x.relu_(), batch)


def out_of_order(batch: int) -> Made:
    """The view is taken before its base changes, and read after."""

    class Early(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            x = self.emb(tokens) * 1.0
            half = x[..., :16]
            x.mul_(0.5)
            return self.loss(self.head(self.body(x + half.repeat(1, 1, 2))), labels)

    return Early(), text(batch)


def in_every_block(batch: int) -> Made:
    """A mask written into a view inside blocks that are alike."""

    class Masked(Stack):
        def body(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
                x.view(x.shape[0], -1).mul_(0.9)
            return self.norm(x)

    return Masked(), text(batch)


def buffer_through_view(batch: int) -> Made:
    """A buffer that forward writes through a view."""

    class Written(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.ones(4, HIDDEN))

        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            self.table.view(-1)[:3].mul_(0.5)
            return self.loss(self.head(self.body(self.emb(tokens) * self.table[0])), labels)

    return Written(), text(batch)


def max_norm(batch: int) -> Made:
    """The embedding's rows are renormalized by its forward."""
    module = Stack()
    module.emb = nn.Embedding(64, HIDDEN, max_norm=1.0)
    return module, text(batch)


def parameter_clamped(batch: int) -> Made:
    """A parameter that forward changes without autograd."""

    class Clamped(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                self.head.weight.clamp_(-0.05, 0.05)
            return super().forward(tokens, labels)

    return Clamped(), text(batch)


def parameter_data_clamped(batch: int) -> Made:
    class Clamped(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            self.head.weight.data.clamp_(-0.05, 0.05)
            return super().forward(tokens, labels)

    return Clamped(), text(batch)


CASES = named(
    equal(
        sliced, slice_of_slice, assigned_slice, augmented_slice, select, view, reshape_of_contiguous, flatten,
        transpose, permute, unsqueeze, narrow, masked_fill, whole_relu, out_of_order, in_every_block, detach,
    ),
    # eager itself refuses to change one of several views of a value with a gradient
    equal_or_refused("(?i)view|in.?place", chunk, split, unbind),
    equal_or_refused("(?i)in.?place|\\.data|detach|differs", data),
    refused("table", buffer_through_view),
    refused("emb|max_norm|renorm", max_norm),
    refused("head", parameter_clamped, parameter_data_clamped),
)  # fmt: skip
