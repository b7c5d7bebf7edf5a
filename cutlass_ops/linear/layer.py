"""A linear layer with elementwise work around it, its gradients as GEMMs with the gradients' work in their epilogues.

    x --W--> acc --epilogue--> stores                          forward    one GEMM
    grads of stores --epilogue's gradient--> dpre              torch, where the next layer's dgrad did not do it
    dpre --W--> dx --inner epilogue's gradient--> d inner      dgrad      one GEMM
    dpre, x --> dW                                             wgrad      one GEMM

The pre-activation is the accumulator, or its sum with the bias: a bias is the first load, over "n", added first. Other
loads are over "m n". ``inner`` is the layer whose first store is this one's x: then the dgrad's epilogue carries the
gradient on to that layer's pre-activation and loads, and x itself gets none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from cutlass_ops.printers.plain import epilogue
from cutlass_ops.spec.gradient import PRODUCT, depends, gradient
from cutlass_ops.spec.notation import read
from cutlass_ops.spec.spec import ACCUMULATOR, Gemm, Store

Tensors = tuple[torch.Tensor, ...]
Optionals = list[torch.Tensor | None]
# gemm, a, b, loads, the key of the chosen kernel -> the stores
Product = Callable[[Gemm, torch.Tensor, torch.Tensor, Sequence[torch.Tensor], str], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Layer:
    """What of it is no tensor. ``keys`` name the kernels of forward, dgrad and wgrad, "" where torch was chosen."""

    forward: Gemm
    inner: Gemm | None
    keys: tuple[str, str, str]

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored (k, n)."""
        return self.forward.b == "k n"


@dataclass(frozen=True)
class Gradients:
    x: torch.Tensor | None
    weight: torch.Tensor | None
    loads: Optionals
    inner: Optionals


@cache
def layer(line: str, inner_line: str, transposed: bool, dtype: str, keys: tuple[str, str, str]) -> Layer:
    """The layer of these epilogues in one line each (``notation``); no inner layer where its line is "".

    ValueError where a line is none, loads what no gradient is known for, or does not store what its gradient reads.
    """
    forward = read(line, dtype, b="k n" if transposed else "n k")
    inner = read(inner_line, dtype) if inner_line else None
    for gemm in filter(None, (forward, inner)):
        _check(gemm)
    return Layer(forward, inner, keys)


def pre_activation(gemm: Gemm) -> str:
    return gemm.ops[0].value if gemm.loads and gemm.loads[0].over == "n" else ACCUMULATOR


def leaves(gemm: Gemm, store: int) -> tuple[str, ...]:
    """Where the gradient of a store ends: at the pre-activation, then at loads over "m n", those that it depends on."""
    names = pre_activation(gemm), *(load.name for load in gemm.loads if load.over == "m n")
    return tuple(name for name in names if name in depends(gemm, gemm.stores[store].value))


@cache
def dgrad(op: Layer) -> Gemm:
    """dx (*m, k) from dpre and the weight; or, behind it, the gradients of the inner layer's leaves."""
    b = "n k" if op.transposed else "k n"
    if op.inner is None:
        return Gemm("linear", op.forward.dtype, b=b, stores=(Store(ACCUMULATOR, op.forward.dtype),))
    return gradient(op.inner, op.inner.stores[0].value, leaves(op.inner, 0), b)


def wgrad(op: Layer) -> Gemm:
    """dw (n, k), or (k, n) when transposed."""
    return Gemm("mm", op.forward.dtype, "k m", "k n", stores=(Store(ACCUMULATOR, op.forward.dtype),))


@cache
def reads(gemm: Gemm) -> tuple[str, ...]:
    """The values that the gradients of an epilogue's stores read, loads and stores by name."""
    rows = [_of_store(gemm, n).loads for n in range(len(gemm.stores))]
    return tuple(dict.fromkeys(_stored(load.name) for row in rows for load in row))


def kept(op: Layer, x: torch.Tensor, weight: torch.Tensor, loads: Tensors, inner: Tensors, stores: Tensors) -> Tensors:
    """What ``gradients`` reads: x, weight, values of the epilogue, values of the inner one."""
    own = {load.name: t for load, t in zip(op.forward.loads, loads, strict=True)}
    own |= {store.value: t for store, t in zip(op.forward.stores, stores, strict=True)}
    before = dict(zip(leaves(op.inner, 0), inner, strict=True)) if op.inner else {}
    return x, weight, *(own[name] for name in reads(op.forward)), *(before[name] for name in _inner_reads(op))


def gradients(
    op: Layer, saved: Tensors, grads: Sequence[torch.Tensor | None], needs: Sequence[bool], product: Product
) -> Gradients:
    """From the stores' gradients; ``needs`` says which of x, weight and bias are asked for. None where none arrives."""
    x, weight, *rest = saved
    pre, loads = through(op, saved, grads, needs[2])
    count = len(leaves(op.inner, 0)) if op.inner else 0
    if pre is None:
        return Gradients(None, None, loads, [None] * count)
    made: Optionals = [None]
    if needs[0] or count:
        made = [*product(dgrad(op), pre, weight, rest[len(reads(op.forward)) :], op.keys[1])]
    dw = weight_gradient(op, pre, x, product) if needs[1] else None
    return Gradients(None, dw, loads, made) if count else Gradients(made[0], dw, loads, [])


def through(
    op: Layer, saved: Tensors, grads: Sequence[torch.Tensor | None], biased: bool
) -> tuple[torch.Tensor | None, Optionals]:
    """The gradients of the pre-activation and of the loads; of a bias where it is asked for."""
    found = _through(op.forward, dict(zip(reads(op.forward), saved[2:], strict=False)), grads)
    pre = found.pop(pre_activation(op.forward), None)
    loads = [found.get(load.name) for load in op.forward.loads]
    if pre is not None and biased and loads and op.forward.loads[0].over == "n":
        loads[0] = pre.reshape(-1, pre.shape[-1]).sum(0)
    return pre, loads


def weight_gradient(op: Layer, pre: torch.Tensor, x: torch.Tensor, product: Product) -> torch.Tensor:
    """From the pre-activation's gradient and the operand."""
    rows, before = pre.reshape(-1, pre.shape[-1]), x.reshape(-1, x.shape[-1])
    return product(wgrad(op), *((before, rows) if op.transposed else (rows, before)), (), op.keys[2])[0]


def _check(gemm: Gemm) -> None:
    for n, load in enumerate(gemm.loads):
        is_first = n == 0 and (gemm.ops[0].op, gemm.ops[0].args) == ("add", (ACCUMULATOR, load.name))
        if load.over != "m n" and not (load.over == "n" and is_first):
            raise ValueError(f"{load.name}: a fused linear loads a bias, added first, and values over 'm n'")
    reads(gemm)


def _through(
    gemm: Gemm, values: dict[str, torch.Tensor], grads: Sequence[torch.Tensor | None]
) -> dict[str, torch.Tensor]:
    """The gradients of the leaves from those of the stores, op by op in torch."""
    total: dict[str, torch.Tensor] = {}
    for n, grad in enumerate(grads):
        if grad is None:
            continue
        backward = _of_store(gemm, n)
        known = {load.name: values[_stored(load.name)] for load in backward.loads} | {ACCUMULATOR: grad}
        for leaf, made in zip(leaves(gemm, n), epilogue(backward, backward.ops, known), strict=True):
            total[leaf] = total[leaf] + made if leaf in total else made
    return total


@cache
def _of_store(gemm: Gemm, store: int) -> Gemm:
    return gradient(gemm, gemm.stores[store].value, leaves(gemm, store))


@cache
def _inner_reads(op: Layer) -> tuple[str, ...]:
    return tuple(_stored(load.name) for load in dgrad(op).loads) if op.inner else ()


def _stored(name: str) -> str:
    return ACCUMULATOR if name == PRODUCT else name
