"""Step time of our program over that of hand-written torch code, launched in turn; equal updates are the entry ticket.

    python -m tools.bench.runtime [--native FILE] [--configs dp2,tp2lp] [--pairs 15] [--json out.json]

A pair is one launch of each; the ratio is of their median steps. FILE takes the options that ``_native`` gives it; its
``OPTIONS`` are those of SGD beside the rate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from partitioner import Cluster, search, trace
from partitioner.errors import InputError
from partitioner.precision import preset
from partitioner.schedule.tables import PLAIN
from partitioner.sharding.mesh_axes import DP, PP, TP
from runtime.ranks import launch
from tools.bench.runtime_rank import Job, WithLoss, batches, native_module
from tools.screen import output, table

SIZES = {"layers": 4, "hidden": 256, "heads": 8, "seq": 128, "vocab": 4096, "batch": 16, "micro": 4}
MOST_ERROR = {"own": 1e-3, "bf16": 0.1}  # of an update after all steps, against one process in float32
BY_HAND = Path(__file__).parents[2] / "examples" / "by_hand.py"
RESAMPLES, SEED = 10_000, 0
LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Config:
    """A mesh, a stage of ZeRO and a precision; micro-batches only where there are stages, as in the file."""

    pp: int = 1
    dp: int = 1
    tp: int = 1
    zero: int = 0
    precision: str = "own"

    @property
    def ranks(self) -> int:
        """Processes."""
        return self.pp * self.dp * self.tp

    def pins(self, sizes: dict[str, int]) -> dict[str, str | int]:
        """What search may not change."""
        each = sizes["batch"] // self.dp
        fixed: dict[str, str | int] = {
            PP: self.pp, DP: self.dp, TP: self.tp, "schedule": PLAIN, "recompute": "off", "zero": self.zero,
            "micro_batch": each // sizes["micro"] if self.pp > 1 else each,
        }  # fmt: skip
        return fixed | ({"boundary": "whole"} if self.tp > 1 else {})


CONFIGS = {
    "single": Config(), "dp2": Config(dp=2), "fsdp2": Config(dp=2, zero=3), "tp2lp": Config(tp=2), "pp2": Config(pp=2),
    "dp2tp2lp": Config(dp=2, tp=2), "dp2pp2": Config(dp=2, pp=2), "tp2pp2": Config(tp=2, pp=2),
    "zero1": Config(dp=2, zero=1), "fsdp2bf16": Config(dp=2, zero=3, precision="bf16"),
    "dp2bf16": Config(dp=2, precision="bf16"),
}  # fmt: skip


@dataclass(frozen=True)
class Ratio:
    """Seconds of each pair's median steps, ours and theirs, and the median of their ratios with a 95 % interval."""

    config: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    ratio: float
    low: float
    high: float
    ours_error: float
    theirs_error: float


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The median ratio of the pairs and its bootstrap 95 % interval (Efron, 1979, percentiles)."""
    rows = [a / b for a, b in zip(ours, theirs, strict=True)]
    draw = random.Random(SEED)
    medians = sorted(statistics.median(draw.choices(rows, k=len(rows))) for _ in range(RESAMPLES))
    return statistics.median(rows), medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]


class Bench:
    """Launches of both sides in one folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.reference = folder / "reference.pt"
        self.environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        self._native("single")

    def measure(self, name: str) -> Ratio:
        """All pairs of one config; who goes first alternates."""
        self._plan(name)
        ours: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        for n in range(self.options.pairs):
            sides = [(ours, self._ours), (theirs, self._native)]
            for rows, run in sides if n % 2 else sides[::-1]:
                rows.append(run(name))
        seconds = [tuple(row["step_s"] for row in rows) for rows in (ours, theirs)]
        errors = [max(row["upd_err"] or 0.0 for row in rows) for rows in (ours, theirs)]
        if max(errors) > MOST_ERROR[CONFIGS[name].precision]:
            raise InputError(f"{name}: updates differ from one process by {errors[0]:.1e} (ours), {errors[1]:.1e}")
        ratio, low, high = ratio_of(*seconds)
        return Ratio(
            config=name, ours=seconds[0], theirs=seconds[1], ratio=ratio, low=low, high=high,
            ours_error=errors[0], theirs_error=errors[1],
        )  # fmt: skip

    def _plan(self, name: str) -> None:
        config = CONFIGS[name]
        module = WithLoss(native_module(self.options.native), SIZES)
        graph = trace(module, batches(SIZES)[0], precision=preset(config.precision))
        cluster = Cluster.load("local-cpu", devices=config.ranks)
        search(graph, cluster, SIZES["batch"], config.pins(SIZES)).save(self._file(name, "plan"))

    def _file(self, name: str, kind: str) -> Path:
        return self.folder / f"{name}.{kind}.json"

    def _ours(self, name: str) -> dict[str, float]:
        plan, made = self._file(name, "plan"), self._file(name, "ours")
        options = self.options
        reference = str(self.reference)
        job = Job(options.native, SIZES, str(plan), reference, options.warmup, options.steps, options.lr, str(made))
        self._file(name, "job").write_text(json.dumps(asdict(job)))
        words = [str(self._file(name, "job"))]
        result = launch.local_module("tools.bench.runtime_rank", words, CONFIGS[name].ranks, LIMIT_SECONDS)
        if result.failure is not None:
            raise InputError(f"{name}: our program stopped: {result.failure}")
        return json.loads(made.read_text())

    def _native(self, name: str) -> dict[str, float]:
        made, options = self._file(name, "native"), self.options
        given = {**SIZES, "steps": options.steps, "warmup": options.warmup, "lr": options.lr, "configs": name}
        words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, options.native, *words, "--ref", str(self.reference), "--json", str(made)]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=LIMIT_SECONDS)
        (row,) = json.loads(made.read_text())["results"]
        if row.get("failed"):
            raise InputError(f"{name}: the hand-written code failed")
        return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.runtime", description=__doc__)
    parser.add_argument("--native", default=str(BY_HAND), metavar="FILE", help="the hand-written torch program")
    parser.add_argument("--configs", default="zero1,fsdp2,fsdp2bf16,dp2bf16", help=f"some of {', '.join(CONFIGS)}")
    for name, default in (("pairs", 15), ("steps", 6), ("warmup", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    options.native = str(Path(options.native).resolve())
    if not Path(options.native).is_file():
        parser.error(f"there is no {options.native}: name the hand-written program by --native")
    rows: list[Ratio] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for name in options.configs.split(","):
            rows.append(bench.measure(name))
            output().print(f"{name}: {rows[-1].ratio:.3f} [{rows[-1].low:.3f}, {rows[-1].high:.3f}]")
            if options.json:
                _write(Path(options.json), options, rows)
    output().print(table("step time, ours / hand-written", _COLUMNS, [_cells(row) for row in rows]))
    return 0


_COLUMNS = ("config", "pairs", "ours, s", "theirs, s", "ratio", "95 %", "update error, ours", "theirs")


def _cells(row: Ratio) -> list[str]:
    middle = [statistics.median(seconds) for seconds in (row.ours, row.theirs)]
    return [
        row.config, str(len(row.ours)), f"{middle[0]:.3f}", f"{middle[1]:.3f}", f"{row.ratio:.3f}",
        f"{row.low:.3f} to {row.high:.3f}", f"{row.ours_error:.0e}", f"{row.theirs_error:.0e}",
    ]  # fmt: skip


def _write(path: Path, options: argparse.Namespace, rows: list[Ratio]) -> None:
    machine = {"torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count()}
    asked = {"sizes": SIZES, "pairs": options.pairs, "steps": options.steps, "warmup": options.warmup}
    document = {**asked, **machine, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
