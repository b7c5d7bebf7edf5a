"""What a checkpoint that is written beside training costs it: ``python -m tools.bench.saving [--saves 8]``.

The stall is what the call of ``save`` takes on the training thread of rank 0, over the median step of the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from partitioner import Cluster, search, trace
from partitioner.errors import InputError
from partitioner.sharding.mesh_axes import DP
from runtime.ranks import launch
from tools.bench.saving_rank import Timed
from tools.models.load import load
from tools.screen import output

SPEC = f"{Path(__file__).parents[2] / 'examples' / 'gpt.py'}:model"
SETTINGS = {"layers": 8, "hidden": 512, "heads": 8, "vocab": 32768, "seq": 128}
RANKS, SAMPLES, BETWEEN = 2, 16, 3
LIMIT_SECONDS = 1800.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line; exit status 1 where the stall is 5 % of a step or more."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.saving", description=__doc__)
    parser.add_argument("--saves", type=int, default=8)
    found = timed(parser.parse_args(arguments).saves)
    step, stall = statistics.median(found.steps), statistics.median(found.saves[1:])
    beside = statistics.median(found.beside)
    output().print(
        f"{found.parameters / 1e6:.1f}M parameters, a checkpoint of {found.bytes / 1e6:.0f} MB on {RANKS} ranks: "
        f"a step {step:.2f} s; save returns after {stall * 1e3:.0f} ms, {stall / step:.1%} of a step (the first after "
        f"{found.saves[0] * 1e3:.0f} ms); it is there after {statistics.median(found.written):.2f} s, and the step "
        f"beside it takes {beside / step:.2f} times as long"
    )
    return int(stall >= 0.05 * step)


def timed(saves: int) -> Timed:
    """On ranks of this machine's CPU, ZeRO 1."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = {"spec": SPEC, "settings": SETTINGS, "samples": SAMPLES, "saves": saves, "between": BETWEEN}
        (folder / "job").write_text(json.dumps(job))
        source = load(SPEC, dict(SETTINGS), meta=True)
        graph = trace(source.module, source.batch, compare=False)
        pins = {DP: RANKS, "micro_batch": SAMPLES // RANKS, "zero": 1}
        search(graph, Cluster.load("local-cpu", devices=RANKS), SAMPLES, pins).save(folder / "plan.json")
        result = launch.local_module("tools.bench.saving_rank", [str(folder)], RANKS, LIMIT_SECONDS)
        if result.failure is not None:
            raise InputError(f"the run stopped: {result.failure}")
        return Timed(**json.loads((folder / "result").read_text()))


if __name__ == "__main__":
    raise SystemExit(main())
