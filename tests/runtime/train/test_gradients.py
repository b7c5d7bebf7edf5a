"""Whether a value has a gradient is a property of each use: frozen parts under every plan, against the eager module."""

from __future__ import annotations

import torch
from eager import PINS, Batch, Make, check
from torch import nn
from torch.nn import functional as F

VOCAB, WIDTH, SEQ = 16, 8, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Stack(nn.Module):
    """An embedding, four like blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())


def tokens(samples: int) -> Batch:
    return {"x": torch.randint(VOCAB, (samples, SEQ)), "y": torch.randint(VOCAB, (samples, SEQ))}


def frozen_embedding(samples: int) -> tuple[nn.Module, Batch]:
    model = Stack()
    model.embed.requires_grad_(False)
    return model, tokens(samples)


def frozen_first_blocks(samples: int) -> tuple[nn.Module, Batch]:
    model = Stack()
    model.embed.requires_grad_(False)
    model.blocks[:2].requires_grad_(False)
    return model, tokens(samples)


def frozen_parts_in_turn(samples: int) -> tuple[nn.Module, Batch]:
    model = Stack()
    for block in model.blocks[::2]:
        block.get_submodule("up").requires_grad_(False)
    return model, tokens(samples)


def head_alone(samples: int) -> tuple[nn.Module, Batch]:
    model = Stack().requires_grad_(False)
    model.head.requires_grad_(True)
    return model, tokens(samples)


class Adapted(nn.Module):
    """A frozen linear beside a trained one of low rank."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.a, self.b = linear, nn.Linear(WIDTH, 2, False), nn.Linear(2, linear.out_features, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.b(self.a(x))


def adapters(samples: int) -> tuple[nn.Module, Batch]:
    model = Stack().requires_grad_(False)
    for block in model.blocks:
        block.up = Adapted(block.up)  # type: ignore[arg-type, assignment]
    return model, tokens(samples)


class Positions(nn.Module):
    """An encoder and a decoder whose positions do not train: they enter the decoder's first block and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.first, self.second = (nn.ModuleList(Block() for _ in range(4)) for _ in range(2))
        self.places = nn.Embedding(SEQ, WIDTH).requires_grad_(False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        places = self.places(torch.arange(SEQ))
        h = self.embed(x) + places
        for block in self.first:
            h = block(h)
        h = h + self.embed(y) + places
        for block in self.second:
            h = block(h + places)
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())


def fixed_positions(samples: int) -> tuple[nn.Module, Batch]:
    return Positions(), tokens(samples)


class Spare(Stack):
    """Parameters that train and have no gradient: forward does not read one, and reads another cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.offset = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.ones(VOCAB))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy((self.head(h) + self.offset.detach()).flatten(0, 1), y.flatten())


def not_reached(samples: int) -> tuple[nn.Module, Batch]:
    """Weight decay leaves alone what has no gradient."""
    return Spare(), tokens(samples)


class Reading(Stack):
    """Every block reads the first values, cut off: what is gathered for them alone passes nothing back."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = h = self.embed(x)
        for block in self.blocks:
            h = block(h + 0.1 * first.detach())
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())


def first_values_cut_off(samples: int) -> tuple[nn.Module, Batch]:
    return Reading(), tokens(samples)


CASES: dict[str, Make] = {
    f.__name__: f
    for f in (
        frozen_embedding, frozen_first_blocks, frozen_parts_in_turn, head_alone, adapters, fixed_positions, not_reached,
        first_values_cut_off,
    )
}  # fmt: skip


def test_parts_that_do_not_train() -> None:
    check(CASES, PINS)
