"""Kernels to try for a GEMM on an architecture, the likeliest first.

Where nvidia-matmul-heuristics is installed, its tiles for the product's size; else a short list in an order that holds
for large products: the widest tile first, then those that leave the epilogue more registers. Which tile's epilogue
spills is found when it is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cutlass_ops.building import build
from cutlass_ops.building.build import BuildError, Entry
from cutlass_ops.spec.kernel import Kernel, Tiling
from cutlass_ops.spec.spec import Gemm
from cutlass_ops.tuning import heuristics

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
_PRINTERS = {"sm_80": "cpp", "sm_86": "cpp", "sm_89": "cpp"}  # else CuTe
_LARGEST_PINGPONG = 128 * 192  # elements of a tile of which two groups of warps hold one each


@dataclass(frozen=True)
class Built:
    """The kernels that came out, and why others did not."""

    entries: tuple[Entry, ...]
    reasons: tuple[str, ...]


def candidates(
    gemm: Gemm, arch: str, printer: str | None = None, sizes: tuple[int, int, int] | None = None
) -> tuple[list[Kernel], list[str]]:
    """Those that can be printed, in order; and why the others can't."""
    tried = [Kernel(gemm, printer or _PRINTERS.get(arch, "cute"), arch, tile) for tile in _tiles(gemm, arch, sizes)]
    reasons = {kernel: build.refusal(kernel) for kernel in tried}
    return [k for k in tried if reasons[k] is None], list(dict.fromkeys(r for r in reasons.values() if r is not None))


def built(
    gemm: Gemm,
    arch: str,
    where: Path,
    printer: str | None = None,
    sizes: tuple[int, int, int] | None = None,
    every: bool = False,
) -> Built:
    """The first candidate, or every one, that compiles and keeps its epilogue in registers."""
    kernels, reasons = candidates(gemm, arch, printer, sizes)
    entries: list[Entry] = []
    for kernel in kernels:
        try:
            entry = build.build(kernel, where)
        except BuildError as error:
            reasons.append(str(error))
            continue
        if entry.manifest.code.local_loads or entry.manifest.code.stack_bytes:
            reasons.append(f"{kernel.name}: its epilogue spills registers")
            continue
        entries.append(entry)
        if not every:
            break
    return Built(tuple(entries), tuple(reasons))


def _tiles(gemm: Gemm, arch: str, sizes: tuple[int, int, int] | None) -> Iterator[Tiling]:
    ranked = heuristics.ranked(gemm, arch, sizes) if sizes else []
    for tile in ranked or _TILES.get(arch, _HOPPER):
        yield tile
        if ranked and tile.cluster_m * tile.cluster_n > 1 and tile.m * tile.n <= _LARGEST_PINGPONG:
            yield replace(tile, pingpong=True)
