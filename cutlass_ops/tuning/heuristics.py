"""Tiles that NVIDIA's nvidia-matmul-heuristics ranks for a product on a device that it knows; no GPU is needed.

As a program, ``python -m cutlass_ops.tuning.heuristics ARCH DTYPE LAYOUT M N K COUNT`` prints them: the library
crashes as its process ends, so it is asked in another one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from cutlass_ops.spec.kernel import Tiling
from cutlass_ops.spec.spec import Gemm

COUNT = 8
_SECONDS = 60
_DEVICES = {
    "sm_80": ("A100_SXM_80GB", "CUTLASS"),
    "sm_86": ("RTX_3090", "CUTLASS"),
    "sm_89": ("L40S", "CUTLASS"),
    "sm_90a": ("H100_SXM", "CUTLASS3"),
    "sm_100a": ("B200", "CUTLASS3"),
}
_PRECISIONS = {"bfloat16": "TST", "float16": "HSH"}


def ranked(gemm: Gemm, arch: str, sizes: tuple[int, int, int]) -> list[Tiling]:
    """At most COUNT tiles for (m, n, k), the fastest by its estimate first; none where it is not installed."""
    if arch not in _DEVICES or gemm.dtype not in _PRECISIONS or importlib.util.find_spec("nvMatmulHeuristics") is None:
        return []
    return list(_ask(arch, gemm.dtype, _layout(gemm), sizes))


@cache
def _ask(arch: str, dtype: str, layout: str, sizes: tuple[int, int, int]) -> tuple[Tiling, ...]:
    words = [arch, dtype, layout, *map(str, sizes), str(COUNT)]
    command = [sys.executable, "-m", "cutlass_ops.tuning.heuristics", *words]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_SECONDS, check=False)
    lines = [line for line in run.stdout.splitlines() if line.startswith("[")]
    if not lines:
        raise RuntimeError(f"nvidia-matmul-heuristics said nothing: {run.stderr.strip()[-300:] or run.returncode}")
    return tuple(dict.fromkeys(Tiling(**row) for row in json.loads(lines[-1])))


def _layout(gemm: Gemm) -> str:
    """BLAS's words for the operands, of a row-major result: T is stored along k."""
    return f"{'T' if gemm.a == 'm k' else 'N'}{'N' if gemm.b == 'n k' else 'T'}_ROW_MAJOR"


def _main(arch: str, dtype: str, layout: str, m: str, n: str, k: str, count: str) -> None:
    library = importlib.import_module("nvMatmulHeuristics")
    device, backend = _DEVICES[arch]
    asked = library.NvMatmulHeuristicsInterface(
        backend=getattr(library.NvMatmulHeuristicsTarget, backend), precision=_PRECISIONS[dtype]
    )
    hardware = asked.createHardwareDescriptor()
    asked.setHardwarePredefinedGpu(hardware, getattr(library.NvMatmulHeuristicsNvidiaGpu, device))
    order = getattr(library.NvMatmulHeuristicsMatmulLayout, layout)
    asked.loadInternalDiscoverySet(order, hardware)
    rows = asked.get_with_mnk(
        m=int(m), n=int(n), k=int(k), matmulLayout=order, count=int(count), hardware_descriptor=hardware
    )
    rows.sort(key=lambda row: row["runtime"])
    print(json.dumps([_tiling(row["kernel"], backend) for row in rows]), flush=True)
    os._exit(0)  # past the library's own end, which crashes


def _tiling(kernel: object, backend: str) -> dict[str, int]:
    of = {name: int(getattr(kernel, name)) for name in ("cta_tile_m", "cta_tile_n", "cta_tile_k", "stages")}
    made = {"m": of["cta_tile_m"], "n": of["cta_tile_n"], "k": of["cta_tile_k"]}
    if backend == "CUTLASS3":
        return made | {f"cluster_{x}": int(getattr(kernel, f"cluster_{x}")) for x in "mn"}
    return made | {"stages": of["stages"]}


if __name__ == "__main__":
    _main(*sys.argv[1:])
