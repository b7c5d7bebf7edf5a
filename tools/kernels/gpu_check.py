"""What a GPU says of the kernels: their numbers against float64, their times against torch's, a block's and a step's.

    python -m tools.kernels.gpu_check DIR --out OUT [--seconds 450]        DIR: what ``gpu_table`` wrote, brought along

One command on a machine with one GPU and no network. Everything measured goes to OUT/gpu_check.json and, for people, to
OUT/gpu_check.md; the winners to OUT/kernels.json, a database that a cluster file can name. What time does not allow is
left out and said.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cutlass_ops.building import build
from cutlass_ops.building.build import Entry
from cutlass_ops.printers.reference import reference
from cutlass_ops.spec.spec import Gemm
from cutlass_ops.tuning import tune
from cutlass_ops.tuning.database import Database, Measured
from cutlass_ops.tuning.tune import Clock, Sizes, Trial
from partitioner.errors import InputError
from tools.kernels import gpu_blocks, gpu_table
from tools.kernels.gpu_report import markdown
from tools.kernels.gpu_table import GemmRow
from tools.screen import error_line

ODD: tuple[Sizes, ...] = ((8, 8, 8), (200, 136, 72), (1000, 520, 264), (4104, 1032, 520))
PACKAGES = ("torch", "triton", "apache-tvm-ffi")
BLOCKS_SECONDS = 150.0  # of the whole, kept for the block and the step


@dataclass
class Timed:
    """A product: seconds of torch's ways and of each kernel, and what was chosen."""

    row: GemmRow
    rivals: dict[str, float]
    trials: list[Trial]
    chosen: Measured

    @property
    def ours(self) -> float | None:
        """Of the fastest right kernel."""
        return min((t.seconds for t in self.trials if t.seconds is not None), default=None)

    def plain(self) -> dict[str, Any]:
        """For the JSON."""
        kernels = [
            {"kernel": t.entry.manifest.name, "key": t.entry.manifest.key, "seconds": t.seconds, "reason": t.reason}
            for t in self.trials
        ]
        words = {"name": self.row.name, "sizes": self.row.sizes, "ops": [op.op for op in self.row.gemm.ops]}
        return words | {"rivals": self.rivals, "kernels": kernels, "chosen": asdict(self.chosen)}


@dataclass
class Report:
    """Everything that was measured."""

    machine: dict[str, str]
    numerics: list[dict[str, Any]] = field(default_factory=list)
    table: list[Timed] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For the JSON."""
        return {**self.__dict__, "table": [timed.plain() for timed in self.table]}


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when every kernel's numbers are right, 1 when one's are wrong, 2 without what is needed."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=450.0, help="about how long all of it may take")
    options = parser.parse_args(arguments)
    try:
        report = check(options.folder, options.out, time.monotonic() + options.seconds)
    except InputError as error:
        error_line(str(error))
        return 2
    sys.stdout.write((options.out / "gpu_check.md").read_text())
    return int(any(not row["right"] for row in report.numerics))


def check(folder: Path, out: Path, deadline: float) -> Report:
    """Measure and write; what was measured before something failed is written too."""
    if not torch.cuda.is_available():
        raise InputError("gpu_check needs a GPU, and torch sees none here")
    if not (folder / "table.json").exists():
        raise InputError(f"{folder} has no table.json: make it with python -m tools.kernels.gpu_table {folder}")
    rows, entries = gpu_table.load(folder / "table.json"), build.entries(folder)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["CUTLASS_OPS_KERNELS"] = str(folder)
    report = Report(machine())
    try:
        report.numerics = [numerics(entry) for entry in entries]
        right = {row["key"] for row in report.numerics if row["right"]}
        measure(report, rows, [e for e in entries if e.manifest.key in right], tune.cuda_clock(), deadline)
        kept = database(report)
        kept.save(out / "kernels.json")
        gpu_blocks.measure(report.blocks, report.left_out, out / "kernels.json", deadline)
    finally:
        (out / "gpu_check.json").write_text(json.dumps(report.plain(), indent=1) + "\n")
        (out / "gpu_check.md").write_text(markdown(report.plain()))
    return report


def machine() -> dict[str, str]:
    """Device, driver and versions."""
    found = {"device": torch.cuda.get_device_name(), "driver": tune.driver(), "cuda": str(torch.version.cuda)}
    found |= {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def numerics(entry: Entry) -> dict[str, Any]:
    """The largest relative error of a kernel's stores over odd sizes, against float64."""
    gemm, errors = entry.kernel.gemm, dict[str, float]()
    found: dict[str, Any] = {"kernel": entry.manifest.name, "key": entry.manifest.key, "digest": gemm.digest}
    bound = min(tune.BOUNDS[store.dtype] for store in gemm.stores)
    try:
        launch = build.PRINTERS[entry.kernel.printer].load(entry.library, entry.kernel)
        for sizes in ODD:
            a, b, loads = tune.operands(gemm, sizes)
            stores = tune.unwritten(gemm, sizes)
            launch(a, b, loads, stores)
            wanted = exact(gemm, a, b, loads)
            rows = zip(stores, wanted, strict=True)
            errors[" x ".join(map(str, sizes))] = max(tune.relative_error(y, w) for y, w in rows)
    except (ImportError, OSError, RuntimeError, ValueError, TypeError) as error:
        return found | {"errors": errors, "bound": bound, "right": False, "reason": str(error)}
    return found | {"errors": errors, "bound": bound, "right": all(e <= bound for e in errors.values()), "reason": ""}


def exact(gemm: Gemm, a: torch.Tensor, b: torch.Tensor, loads: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The spec in float64 throughout."""
    wide = replace(
        gemm,
        dtype="float64",
        loads=tuple(replace(load, dtype="float64") for load in gemm.loads),
        stores=tuple(replace(store, dtype="float64") for store in gemm.stores),
    )
    return reference(wide)(a.double(), b.double(), *(x.double() for x in loads))


def measure(report: Report, rows: list[GemmRow], entries: list[Entry], clock: Clock, deadline: float) -> None:
    """Fused products first; then torch.compile beside them, as long as time allows, for it takes the longest."""
    for row in sorted(rows, key=lambda row: not row.gemm.ops):
        if time.monotonic() > deadline - BLOCKS_SECONDS:
            report.left_out.append(f"{row.name}: no time left")
            continue
        mine = [entry for entry in entries if entry.kernel.gemm == row.gemm]
        rivals = tune.time_rivals(row.gemm, row.sizes, clock)
        trials = [tune.try_kernel(row.gemm, row.sizes, entry, clock) for entry in mine]
        report.table.append(Timed(row, rivals, trials, _chosen(row, rivals, trials)))
    for timed in report.table:
        if not timed.row.gemm.ops:
            continue
        if time.monotonic() > deadline - BLOCKS_SECONDS:
            report.left_out.append(f"{timed.row.name}: no time left for torch.compile")
            continue
        timed.rivals["torch.compile"] = tune.time_compiled(timed.row.gemm, timed.row.sizes, clock)
        timed.chosen = _chosen(timed.row, timed.rivals, timed.trials)


def _chosen(row: GemmRow, rivals: dict[str, float], trials: list[Trial]) -> Measured:
    rival = min(rivals, key=rivals.__getitem__)
    return tune.winner(row.gemm, row.sizes, trials, rival, rivals[rival])


def database(report: Report) -> Database:
    """The winners."""
    versions = {name: report.machine[name] for name in (*PACKAGES, "cuda")}
    rows = tuple(timed.chosen for timed in report.table)
    return Database(report.machine["device"], report.machine["driver"], versions, rows)


if __name__ == "__main__":
    sys.exit(main())
