"""The elementwise work that an epilogue may do: one row an op, in the words of the printers.

    torch   a function of float32 tensors
    cute    text over quack's device functions; {0} is the first argument
    C++     the function of the op's name in include/elementwise.cuh
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

aten = torch.ops.aten


@dataclass(frozen=True)
class Elementwise:
    arity: int
    torch: Callable[..., torch.Tensor]
    cute: str


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def gelu_tanh_backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return aten.gelu_backward(grad, x, approximate="tanh")


def relu_backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return aten.threshold_backward(grad, x, 0.0)


OPS: dict[str, Elementwise] = {
    "add": Elementwise(2, torch.add, "{0} + {1}"),
    "sub": Elementwise(2, torch.sub, "{0} - {1}"),
    "mul": Elementwise(2, torch.mul, "{0} * {1}"),
    "relu": Elementwise(1, torch.relu, "activation.relu({0})"),
    "gelu": Elementwise(1, F.gelu, "activation.gelu_erf({0})"),
    "gelu_tanh": Elementwise(1, gelu_tanh, "activation.gelu_tanh_approx({0})"),
    "silu": Elementwise(1, F.silu, "activation.silu({0})"),
    "sigmoid": Elementwise(1, torch.sigmoid, "activation.sigmoid({0})"),
    "tanh": Elementwise(1, torch.tanh, "activation.tanh({0})"),
    # of the result's gradient and the activation's argument
    "relu_backward": Elementwise(2, relu_backward, "activation.drelu({1}, {0})[0]"),
    "gelu_backward": Elementwise(2, aten.gelu_backward.default, "activation.dgelu_erf({1}, {0})[0]"),
    "gelu_tanh_backward": Elementwise(2, gelu_tanh_backward, "activation.dgelu_tanh_approx({1}, {0})[0]"),
    "silu_backward": Elementwise(2, aten.silu_backward.default, "activation.dsilu({1}, {0})[0]"),
}
