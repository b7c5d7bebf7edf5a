"""One way to run a GEMM on a device: the spec, the printer that writes it, the architecture and the tile."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from cutlass_ops.spec import spec
from cutlass_ops.spec.spec import Gemm


@dataclass(frozen=True)
class Tiling:
    """The block of the result that a group of warps makes, and how the blocks share the device."""

    m: int  # rows and columns of the block
    n: int
    k: int = 64  # depth of one step of the main loop
    cluster_m: int = 1  # thread blocks that share their loads, from sm_90
    cluster_n: int = 1
    pingpong: bool = False  # two groups of warps in turn, one's epilogue beside the other's products; from sm_90
    stages: int = 3  # steps in flight where the printer does not fill shared memory by itself (before sm_90)


@dataclass(frozen=True)
class Kernel:
    gemm: Gemm
    printer: str  # "cute" or "cpp"
    arch: str
    tiling: Tiling

    @property
    def name(self) -> str:
        """Short, for people: ``cute sm_90a 128x192x64 cluster 2x1 pingpong``."""
        t = self.tiling
        words = [self.printer, self.arch, f"{t.m}x{t.n}x{t.k}"]
        words += [f"cluster {t.cluster_m}x{t.cluster_n}"] if t.cluster_m * t.cluster_n > 1 else []
        return " ".join([*words, *(["pingpong"] if t.pingpong else [])])


def to_json(kernel: Kernel) -> str:
    return json.dumps({**asdict(kernel), "gemm": json.loads(spec.to_json(kernel.gemm))}, sort_keys=True, indent=1)


def from_json(text: str) -> Kernel:
    """The kernel that ``to_json`` printed. ValueError where the text is none."""
    try:
        fields = json.loads(text)
        gemm = spec.from_json(json.dumps(fields.pop("gemm")))
        return Kernel(gemm=gemm, tiling=Tiling(**fields.pop("tiling")), **fields)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a kernel's JSON: {error}") from error
