"""Kernels to try for a GEMM on an architecture, the likeliest first.

A short list in an order that holds for large products: the widest tile first, then those that leave the epilogue more
registers. Tiles whose epilogue spills are found when they are built.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from cutlass_ops import build
from cutlass_ops.kernel import Kernel, Tiling
from cutlass_ops.spec import Gemm

_HOPPER = (
    Tiling(128, 256, cluster_m=2),
    Tiling(128, 192, cluster_m=2, pingpong=True),
    Tiling(256, 128, cluster_m=2),
    Tiling(128, 128, cluster_m=2, pingpong=True),
    Tiling(128, 128, cluster_m=2),
    Tiling(128, 128),
    Tiling(128, 64),
)
_AMPERE = (
    Tiling(128, 256, 32),
    Tiling(256, 128, 32),
    Tiling(128, 128, 32, stages=4),
    Tiling(128, 128, 64),
    Tiling(128, 64, 32, stages=4),
    Tiling(64, 64, 32, stages=4),
)
_TILES = {"sm_80": _AMPERE, "sm_86": _AMPERE, "sm_89": _AMPERE}
PRINTERS = {"sm_80": "cpp", "sm_86": "cpp", "sm_89": "cpp"}  # else CuTe


def candidates(gemm: Gemm, arch: str, printer: str | None = None) -> list[Kernel]:
    """All that can be printed, in order; empty where none can (``refusal`` says why)."""
    tried = _tried(gemm, arch, printer)
    return [kernel for kernel in tried if build.refusal(kernel) is None]


def refusal(gemm: Gemm, arch: str, printer: str | None = None) -> str:
    """Why there is no candidate."""
    return build.refusal(next(_tried(gemm, arch, printer))) or ""


def without_spills(gemm: Gemm, arch: str, where: build.Path, printer: str | None = None) -> build.Entry | None:
    """The first candidate whose code keeps everything in registers, built; None where none does."""
    for kernel in candidates(gemm, arch, printer):
        entry = build.build(kernel, where)
        if not entry.manifest.code.local_loads and not entry.manifest.code.stack_bytes:
            return entry
    return None


def _tried(gemm: Gemm, arch: str, printer: str | None) -> Iterator[Kernel]:
    printers = [printer or PRINTERS.get(arch, "cute")]
    for name, tile in itertools.product(printers, _TILES.get(arch, _HOPPER)):
        yield Kernel(gemm, name, arch, tile)
