"""One GEMM now: by the kernel that was chosen for it where every guard holds, by torch where one does not.

Nothing here raises into a model: what keeps a kernel from running is a reason, counted in the caller's log.
``CUTLASS_OPS=off`` in the environment turns all kernels off.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import torch

from cutlass_ops.building import build
from cutlass_ops.printers.plain import plain
from cutlass_ops.spec.kernel import Kernel
from cutlass_ops.spec.spec import Gemm

SWITCH = "CUTLASS_OPS"
Launch = Callable[..., None]
Log = Counter[str]
RAN = "ran"  # what the log counts beside reasons
_ALIGNMENT = 16


def run(
    gemm: Gemm,
    a: torch.Tensor,
    b: torch.Tensor,
    loads: Sequence[torch.Tensor] = (),
    offsets: torch.Tensor | None = None,
    key: str = "",
    log: Log | None = None,
) -> tuple[torch.Tensor, ...]:
    """A tensor for each store of ``gemm``; ``key`` names the built kernel that was chosen, "" is torch."""
    made = _launched(gemm, a, b, loads, offsets, key) if key else "torch was chosen"
    if log is not None:
        log[made if isinstance(made, str) else RAN] += 1
    return plain(gemm, a, b, loads, offsets) if isinstance(made, str) else made


def _launched(
    gemm: Gemm,
    a: torch.Tensor,
    b: torch.Tensor,
    loads: Sequence[torch.Tensor],
    offsets: torch.Tensor | None,
    key: str,
) -> tuple[torch.Tensor, ...] | str:
    """The stores that the kernel wrote, or why it did not."""
    if os.environ.get(SWITCH) == "off":
        return f"{SWITCH}=off"
    found = library(key, str(build.root()))
    if isinstance(found, str):
        return found
    kernel, launch = found
    if (reason := guard(gemm, kernel, a, b, loads)) is not None:
        return reason
    stores = [_empty(gemm, store.dtype, a, b) for store in gemm.stores]
    try:
        launch(a, b, loads, stores, offsets)
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{kernel.name} refused: {error}"
    return tuple(stores)


@cache
def library(key: str, where: str) -> tuple[Kernel, Launch] | str:
    """The kernel of that key, loaded, or why it can't be."""
    entry = build.find(key, build.Path(where))
    if entry is None:
        return f"kernel {key} is not built in {where}"
    try:
        return entry.kernel, build.PRINTERS[entry.kernel.printer].load(entry.library, entry.kernel)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return f"{entry.kernel.name} does not load: {error}"


def guard(gemm: Gemm, kernel: Kernel, a: torch.Tensor, b: torch.Tensor, loads: Sequence[torch.Tensor]) -> str | None:
    """Why these operands can't go through this kernel, or None. Looks at nothing but shapes, strides and addresses."""
    if gemm != kernel.gemm:
        return f"{kernel.name} computes another spec"
    for name, x, dtype in _named(gemm, a, b, loads):
        if x.dtype != getattr(torch, dtype):
            return f"{name} is {str(x.dtype).removeprefix('torch.')}, not {dtype}"
    if min(a.numel(), b.numel()) == 0:
        return "an operand is empty"
    for name, x, _ in _named(gemm, a, b, loads):
        if (reason := _laid(name, x)) is not None:
            return reason
    if a.device.type != "cuda":
        return f"operands are on the {a.device.type}"
    major, minor = torch.cuda.get_device_capability(a.device)
    if kernel.arch.rstrip("a") != f"sm_{major}{minor}":
        return f"the device is sm_{major}{minor}, the kernel {kernel.arch}"
    return None


def _laid(name: str, x: torch.Tensor) -> str | None:
    """Why an operand lies wrong for 16-byte accesses, or None."""
    if x.dim() == 0:
        return None
    if x.stride(-1) != 1:
        return f"{name} is not contiguous in its last dimension"
    for n in range(x.dim() - 2):
        if x.stride(n) != x.stride(n + 1) * x.shape[n + 1]:
            return f"{name}'s rows do not lie at one distance"
    if x.data_ptr() % _ALIGNMENT:
        return f"{name}'s address is no multiple of {_ALIGNMENT} bytes"
    for size in (x.shape[-1], *x.stride()[-2:-1]):
        if size * x.element_size() % _ALIGNMENT:
            return f"{name}'s rows of {size} are no multiple of {_ALIGNMENT} bytes"
    return None


def _named(
    gemm: Gemm, a: torch.Tensor, b: torch.Tensor, loads: Sequence[torch.Tensor]
) -> list[tuple[str, torch.Tensor, str]]:
    rows = [(load.name, x, load.dtype) for load, x in zip(gemm.loads, loads, strict=True)]
    return [("a", a, gemm.dtype), ("b", b, gemm.dtype), *rows]


def _empty(gemm: Gemm, dtype: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    n = b.shape[-2] if gemm.b == "n k" else b.shape[-1]
    rows = a.shape[:-1] if gemm.a == "m k" else (*a.shape[:-2], a.shape[-1])
    return torch.empty((*rows, n), dtype=getattr(torch, dtype), device=a.device)
