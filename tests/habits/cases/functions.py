"""Custom autograd functions, hooks, compiled and checkpointed modules, parametrizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from case import equal, equal_or_refused, named
from stack import HIDDEN, Made, Stack, text
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint


class Round(torch.autograd.Function):
    """Straight through: the gradient is handed on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Tenth(torch.autograd.Function):
    """The identity, whose gradient is a tenth."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 0.1 * grad


class SquaredRelu(torch.autograd.Function):
    """What autograd would have made, written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu().square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x.relu() * grad


class Two(torch.autograd.Function):
    """Two operands and two results, with setup_context."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return x * scale, x + scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return 0.5 * (a * scale + b), (a * x + b).sum((0, 1))


class Applied(Stack):
    """``function`` acts after every block."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.function(block(x))
        return self.norm(x)


def straight_through(batch: int) -> Made:
    return Applied(lambda x: Round.apply(x)), text(batch)


def straight_through_by_detach(batch: int) -> Made:
    """The same without a function of its own."""
    return Applied(lambda x: x + (torch.round(x * 8) / 8 - x).detach()), text(batch)


def gradient_scaled(batch: int) -> Made:
    class Scaled(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            return self.loss(self.head(self.body(Tenth.apply(self.emb(tokens)))), labels)

    return Scaled(), text(batch)


def activation_function(batch: int) -> Made:
    class Squared(Stack):
        def logits(self, tokens: Tensor) -> Tensor:
            return self.head(SquaredRelu.apply(self.body(self.emb(tokens))))

    return Squared(), text(batch)


def two_results(batch: int) -> Made:
    class Doubled(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.linspace(0.5, 1.5, HIDDEN))

        def logits(self, tokens: Tensor) -> Tensor:
            a, b = Two.apply(self.body(self.emb(tokens)), self.scale)
            return self.head(a + b)

    return Doubled(), text(batch)


def parameter_hook(batch: int) -> Made:
    """Old rows of the embedding keep their values."""
    module = Stack()
    mask = (torch.arange(64) >= 32)[:, None]
    module.emb.weight.register_hook(lambda grad: grad * mask.to(grad.dtype))
    return module, text(batch)


def tensor_hook(batch: int) -> Made:
    class Hooked(Stack):
        def body(self, x: Tensor) -> Tensor:
            x.register_hook(lambda grad: 0.5 * grad)
            return super().body(x)

    return Hooked(), text(batch)


def forward_hook(batch: int) -> Made:
    module = Stack()
    module.blocks[1].register_forward_hook(lambda m, args, out: 0.5 * out)
    return module, text(batch)


def forward_pre_hook(batch: int) -> Made:
    module = Stack()
    module.norm.register_forward_pre_hook(lambda m, args: (2.0 * args[0],))
    return module, text(batch)


def backward_hook(batch: int) -> Made:
    module = Stack()
    module.blocks[2].register_full_backward_hook(lambda m, given, got: (0.5 * given[0],))
    return module, text(batch)


def backward_pre_hook(batch: int) -> Made:
    module = Stack()
    module.blocks[2].register_full_backward_pre_hook(lambda m, got: (0.5 * got[0],))
    return module, text(batch)


def accumulated_hook(batch: int) -> Made:
    """What runs once a parameter's gradient is whole."""
    module = Stack()

    def halve(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)

    module.head.weight.register_post_accumulate_grad_hook(halve)
    return module, text(batch)


def compiled(batch: int) -> Made:
    return torch.compile(Stack()), text(batch)  # type: ignore[return-value]


def compiled_blocks(batch: int) -> Made:
    module = Stack()
    module.blocks = nn.ModuleList(torch.compile(block) for block in module.blocks)
    return module, text(batch)


def compiled_in_place(batch: int) -> Made:
    module = Stack()
    for block in module.blocks:
        block.compile()
    return module, text(batch)


class Checkpointed(Stack):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.norm(x)


def checkpoint_of_blocks(batch: int) -> Made:
    return Checkpointed(False), text(batch)


def checkpoint_of_every_other(batch: int) -> Made:
    class Some(Stack):
        def body(self, x: Tensor) -> Tensor:
            for n, block in enumerate(self.blocks):
                x = checkpoint(block, x, use_reentrant=False) if n % 2 else block(x)
            return self.norm(x)

    return Some(), text(batch)


def checkpoint_reentrant(batch: int) -> Made:
    return Checkpointed(True), text(batch)


def normed_weights(batch: int) -> Made:
    module = Stack()
    for block in module.blocks:
        weight_norm(block.up, dim=0)
        weight_norm(block.down, dim=0)
    return module, text(batch)


def spectral_weights(batch: int) -> Made:
    """A parametrization that keeps power-iteration vectors in buffers and changes them."""
    module = Stack()
    spectral_norm(module.head)
    return module, text(batch)


def standardized_weights(batch: int) -> Made:
    """Weights made of parameters in forward."""

    class Standard(Stack):
        def logits(self, tokens: Tensor) -> Tensor:
            w = self.head.weight
            w = (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5)
            return F.linear(self.body(self.emb(tokens)), w)

    return Standard(), text(batch)


CASES = named(
    equal(straight_through_by_detach, forward_hook, forward_pre_hook, checkpoint_of_blocks, checkpoint_of_every_other,
          normed_weights, standardized_weights),
    equal_or_refused("Round", straight_through),
    equal_or_refused("Tenth", gradient_scaled),
    equal_or_refused("SquaredRelu", activation_function),
    equal_or_refused("Two", two_results),
    equal_or_refused("(?i)hook", parameter_hook, tensor_hook, backward_hook, backward_pre_hook, accumulated_hook),
    equal_or_refused("(?i)compile", compiled, compiled_blocks, compiled_in_place),
    equal_or_refused("(?i)checkpoint|reentrant", checkpoint_reentrant),
    equal_or_refused("(?i)buffer|_u|_v|state|in.?place", spectral_weights),
)  # fmt: skip
