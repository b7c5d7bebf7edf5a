"""Fused GEMMs as models have them, by name, and the same in eager torch, written by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from cutlass_ops.spec.kernel import Kernel, Tiling
from cutlass_ops.spec.spec import Gemm, Load, Op, Store

SIZES = {"l": 3, "m": 8, "n": 24, "k": 16}


def specs(dtype: str = "bfloat16") -> dict[str, Gemm]:
    def load(name: str, over: str) -> Load:
        return Load(name, over, dtype)

    def stores(*values: str) -> tuple[Store, ...]:
        return tuple(Store(value, dtype) for value in values)

    return {
        "plain": Gemm("mm", dtype, b="k n", stores=stores("acc")),
        # GPT: fc1 with what its backward needs, then half of it on the residual stream
        "gelu": Gemm(
            "linear",
            dtype,
            loads=(load("bias", "n"), load("residual", "m n")),
            ops=(
                Op("v0", "add", ("acc", "bias")),
                Op("v1", "gelu_tanh", ("v0",)),
                Op("v2", "mul", ("v1", 0.5)),
                Op("v3", "add", ("v2", "residual")),
            ),
            stores=stores("v3", "v0"),
        ),
        # Llama: up_proj beside the gate, and both gradients behind down_proj's dgrad
        "gate": Gemm(
            "linear",
            dtype,
            loads=(load("gate", "m n"),),
            ops=(Op("v0", "silu", ("gate",)), Op("v1", "mul", ("v0", "acc"))),
            stores=stores("v1", "acc"),
        ),
        "gate_backward": Gemm(
            "linear",
            dtype,
            b="k n",
            loads=(load("gate", "m n"), load("up", "m n")),
            ops=(
                Op("v0", "mul", ("acc", "up")),
                Op("v1", "silu_backward", ("v0", "gate")),
                Op("v2", "silu", ("gate",)),
                Op("v3", "mul", ("acc", "v2")),
            ),
            stores=stores("v1", "v3"),
        ),
        "gelu_backward": Gemm(
            "linear",
            dtype,
            b="k n",
            loads=(load("x", "m n"),),
            ops=(Op("v0", "gelu_backward", ("acc", "x")),),
            stores=stores("v0"),
        ),
        "wgrad": Gemm(
            "mm",
            dtype,
            a="k m",
            b="k n",
            loads=(Load("total", "m n", "float32"),),
            ops=(Op("v0", "add", ("acc", "total")),),
            stores=(Store("v0", "float32"),),
        ),
        "batched": Gemm(
            "batched",
            dtype,
            b="k n",
            loads=(load("bias", "n"), load("rows", "m")),
            ops=(Op("v0", "add", ("acc", "bias")), Op("v1", "mul", ("v0", "rows"))),
            stores=stores("v1"),
        ),
        "grouped": Gemm(
            "grouped",
            dtype,
            loads=(load("bias", "n"), Load("rows", "m", "float32")),
            ops=(Op("v0", "add", ("acc", "bias")), Op("v1", "mul", ("v0", "rows"))),
            stores=stores("v1"),
        ),
        "scaled": Gemm(
            "linear",
            dtype,
            loads=(Load("scale", "", "float32"),),
            ops=(Op("v0", "mul", ("acc", "scale")), Op("v1", "relu", ("v0",))),
            stores=stores("v1"),
        ),
    }


def _grouped(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor) -> object:
    parts = [a[s:e] @ w.T + v for s, e, w, v in zip(offsets, offsets[1:], b, bias, strict=False)]
    return (torch.cat(parts) * rows[:, None],)


def _gelu(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> object:
    z = F.linear(a, b, bias)
    return F.gelu(z, approximate="tanh") * 0.5 + residual, z


def _gate_backward(a: torch.Tensor, b: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> object:
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    return torch.autograd.grad(F.silu(gate) * up, (gate, up), a @ b)


def _gelu_backward(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> object:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.gelu(x), (x,), a @ b)


def _gate(a: torch.Tensor, b: torch.Tensor, gate: torch.Tensor) -> object:
    up = F.linear(a, b)
    return F.silu(gate) * up, up


EAGER: dict[str, Callable[..., object]] = {
    "plain": lambda a, b: (a @ b,),
    "gelu": _gelu,
    "gate": _gate,
    "gate_backward": _gate_backward,
    "gelu_backward": _gelu_backward,
    "wgrad": lambda a, b, total: ((a.T @ b).float() + total,),
    "batched": lambda a, b, bias, rows: ((a @ b + bias[:, None]) * rows[..., None],),
    "grouped": _grouped,
    "scaled": lambda a, b, scale: (F.relu(F.linear(a, b) * scale.to(a.dtype)),),
}


def operands(gemm: Gemm, device: str = "cpu", sizes: dict[str, int] = SIZES) -> list[torch.Tensor]:
    """Random a, b, offsets where it is grouped, and loads, in the shapes that ``spec`` says."""
    lead = {"batched": ["l"], "linear": ["l"]}.get(gemm.kind, [])
    stacked = ["l"] if gemm.kind in ("batched", "grouped") else []
    over = {"m n": [*lead, "m", "n"], "n": [*stacked, "n"], "m": [*lead, "m"], "": []}
    rows = [(gemm.dtype, [*lead, *gemm.a.split()]), (gemm.dtype, [*stacked, *gemm.b.split()])]
    rows += [(load.dtype, over[load.over]) for load in gemm.loads]
    found = [torch.randn([sizes[f] for f in names]).to(device, getattr(torch, dtype)) for dtype, names in rows]
    if gemm.kind == "grouped":
        steps = torch.tensor([0, 1, sizes["m"] // 2, sizes["m"]], dtype=torch.int32, device=device)
        found.insert(2, steps)
    return found


# What goes into the golden files, and is built where the compilers are: a printer, an architecture and a tile that
# holds the epilogue in registers.
KERNELS: dict[str, Kernel] = {
    f"{name}.{printer}.{arch}": Kernel(specs()[name], printer, arch, tile)
    for name, printer, arch, tile in (
        ("plain", "cute", "sm_90a", Tiling(128, 256, cluster_m=2)),
        ("gelu", "cute", "sm_90a", Tiling(128, 128, cluster_m=2, pingpong=True)),
        ("gate", "cute", "sm_90a", Tiling(128, 192, cluster_m=2, pingpong=True)),
        ("gate_backward", "cute", "sm_90a", Tiling(128, 128, cluster_m=2, pingpong=True)),
        ("wgrad", "cute", "sm_90a", Tiling(128, 192, cluster_m=2, pingpong=True)),
        ("batched", "cute", "sm_90a", Tiling(128, 192, cluster_m=2, pingpong=True)),
        ("grouped", "cute", "sm_90a", Tiling(128, 192, cluster_m=2, pingpong=True)),
        ("scaled", "cute", "sm_90a", Tiling(128, 192, cluster_m=2, pingpong=True)),
        ("gelu", "cpp", "sm_90a", Tiling(128, 128, cluster_m=2)),
        ("gelu", "cpp", "sm_80", Tiling(128, 128, 32)),
        ("gate_backward", "cpp", "sm_80", Tiling(128, 128, 32)),
        ("scaled", "cpp", "sm_80", Tiling(64, 128, 32)),
        ("batched", "cpp", "sm_80", Tiling(128, 64, 32)),
    )
}
