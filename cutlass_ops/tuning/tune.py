"""Which way of running a GEMM is fastest on this device: built kernels against torch's own, behind a numeric gate.

    entries --gate--> those whose numbers are right, at ragged sizes too --clock--> against torch's ways --> a winner

Nothing here is timed on zeros, on a warm cache, or with the host in the loop: operands are random, the cache is flushed
before every run, and a run is a CUDA graph's replay.
"""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from cutlass_ops.building import build
from cutlass_ops.building.build import Entry
from cutlass_ops.printers.plain import plain
from cutlass_ops.printers.reference import reference
from cutlass_ops.spec.spec import ACCUMULATOR, Gemm
from cutlass_ops.tuning.database import Database, Measured

Run = Callable[[], object]
Clock = Callable[[Run], float]  # median seconds of a run
Sizes = tuple[int, int, int]  # m, n, k

# Relative error in the 2-norm against the float32 reference that rounds once: a unit in the last place of the store.
BOUNDS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-12}
COMPILED = "max-autotune-no-cudagraphs"
MARGIN = 0.99  # of torch's time: a kernel wins below it, so that nothing chosen is slower


@dataclass(frozen=True)
class Trial:
    """One kernel at one size: its seconds, or why it is out."""

    entry: Entry
    seconds: float | None
    reason: str = ""


def tune(gemm: Gemm, sizes: Sizes, entries: Sequence[Entry], clock: Clock, compiled: bool = True) -> Measured:
    """The winner at (m, n, k) on the current device. ``compiled``: torch.compile max-autotune among the rivals."""
    rivals = time_rivals(gemm, sizes, clock)
    if compiled:
        rivals["torch.compile"] = time_compiled(gemm, sizes, clock)
    rival = min(rivals, key=rivals.__getitem__)
    trials = [try_kernel(gemm, sizes, entry, clock) for entry in entries]
    return winner(gemm, sizes, trials, rival, rivals[rival])


def database(rows: Sequence[Measured]) -> Database:
    """Of the current device, its driver, and the versions that decide what torch does."""
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    return Database(torch.cuda.get_device_name(), driver(), versions, tuple(rows))


def driver() -> str:
    """The version of the NVIDIA driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()[0]


def winner(gemm: Gemm, sizes: Sizes, trials: Sequence[Trial], rival: str, seconds: float) -> Measured:
    """The fastest right kernel where it beats torch's fastest way, else torch and why."""
    right = [trial for trial in trials if trial.seconds is not None]
    best = min(right, key=lambda trial: trial.seconds or 0.0, default=None)
    if best is not None and best.seconds is not None and best.seconds < MARGIN * seconds:
        key, name = best.entry.manifest.key, best.entry.manifest.name
        return Measured(gemm.digest, gemm.a, *sizes, key, name, best.seconds, seconds, rival)
    if best is not None and best.seconds is not None:
        reason = f"torch ({rival}) {seconds * 1e6:.1f} us, {best.entry.manifest.name} {best.seconds * 1e6:.1f} us"
    else:
        reason = "; ".join(dict.fromkeys(trial.reason for trial in trials)) or "no kernel is built"
    return Measured(gemm.digest, gemm.a, *sizes, "", "", seconds, seconds, rival, reason)


def try_kernel(gemm: Gemm, sizes: Sizes, entry: Entry, clock: Clock) -> Trial:
    """Gate, then time."""
    try:
        launch = build.PRINTERS[entry.kernel.printer].load(entry.library, entry.kernel)
        reason = gate(gemm, sizes, launch)
        if reason is not None:
            return Trial(entry, None, f"{entry.manifest.name}: {reason}")
        a, b, loads = operands(gemm, sizes)
        stores = unwritten(gemm, sizes)
        return Trial(entry, clock(partial(launch, a, b, loads, stores)))
    except (ImportError, OSError, RuntimeError, ValueError, TypeError) as error:
        return Trial(entry, None, f"{entry.manifest.name}: {error}")


def gate(gemm: Gemm, sizes: Sizes, launch: Callable[..., None]) -> str | None:
    """Why a kernel's numbers are wrong, or None: at the size itself, and at one that fills no tile."""
    m, n, k = sizes
    for size in (sizes, (max(8, m // 16 * 8 - 8), n + 8, k + 8)):
        a, b, loads = operands(gemm, size)
        stores = unwritten(gemm, size)
        launch(a, b, loads, stores)
        for found, wanted in zip(stores, exact(gemm, a, b, loads), strict=True):
            error = relative_error(found, wanted)
            bound = BOUNDS[str(found.dtype).removeprefix("torch.")]
            if not error <= bound:
                return f"wrong by {error:.1e} at {size[0]} x {size[1]} x {size[2]}, over {bound:.1e}"
    return None


def exact(gemm: Gemm, a: torch.Tensor, b: torch.Tensor, loads: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The reference, its products in true float32."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return reference(gemm)(a, b, *loads)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of the 2-norm; NaN where anything was not written."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def time_rivals(gemm: Gemm, sizes: Sizes, clock: Clock) -> dict[str, float]:
    """Torch's own ways of computing the same: eager, and its fused bias and activation where that fits."""
    a, b, loads = operands(gemm, sizes)
    ways: dict[str, Run] = {"eager": partial(plain, gemm, a, b, loads)}
    if (activation := _addmm_activation(gemm)) is not None:
        left, right = a if gemm.a == "m k" else a.mT, b.mT if gemm.b == "n k" else b
        fused = torch.ops.aten._addmm_activation.default
        ways["_addmm_activation"] = partial(fused, loads[0], left, right, use_gelu=activation)
    return {name: clock(run) for name, run in ways.items()}


def time_compiled(gemm: Gemm, sizes: Sizes, clock: Clock) -> float:
    """torch.compile's max-autotune; the clock makes the graph, so it makes none of its own."""
    a, b, loads = operands(gemm, sizes)
    return clock(partial(torch.compile(partial(plain, gemm), mode=COMPILED, dynamic=False), a, b, loads))


def operands(
    gemm: Gemm, sizes: Sizes, device: str | torch.device = ""
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Random operands of a ``mm`` or ``linear`` GEMM on the current accelerator; products of about unit size."""
    place = device or accelerator()
    of = dict(zip("mnk", sizes, strict=True))

    def draw(over: str, dtype: str, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn([of[f] for f in over.split()], device=place) * scale).to(getattr(torch, dtype))

    a, b = draw(gemm.a, gemm.dtype), draw(gemm.b, gemm.dtype, sizes[2] ** -0.5)
    return a, b, [draw(load.over, load.dtype) for load in gemm.loads]


def cuda_clock(runs: int = 30, flush_bytes: int = 256 * 2**20) -> Clock:
    """Median of a graph's replays by device events, each after a pass over more memory than the cache holds."""
    flush = torch.empty(flush_bytes, dtype=torch.int8, device="cuda")

    def clock(run: Run) -> float:
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
        for start, end in pairs:
            flush.zero_()
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in pairs) * 1e-3

    return clock


def _addmm_activation(gemm: Gemm) -> bool | None:
    """Whether torch's op of that name computes the GEMM: with tanh's gelu (True), with relu (False), or not (None)."""
    if len(gemm.ops) != 2 or len(gemm.stores) != 1 or len(gemm.loads) != 1 or gemm.loads[0].over != "n":
        return None
    bias, activation = gemm.ops
    chained = (bias.op, bias.args) == ("add", (ACCUMULATOR, gemm.loads[0].name)) and activation.args == (bias.value,)
    known: Mapping[str, bool] = {"gelu_tanh": True, "relu": False}
    return known.get(activation.op) if chained and gemm.stores[0].value == activation.value else None


def unwritten(gemm: Gemm, sizes: Sizes) -> list[torch.Tensor]:
    """Stores full of NaN."""
    return [torch.full(sizes[:2], torch.nan, device=accelerator()).to(getattr(torch, s.dtype)) for s in gemm.stores]


def accelerator() -> str:
    """Where kernels run; tests of all but the times run on the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
