"""Seconds and memory of planning: load on meta, trace, search, each once in this process.

    python -m tools.bench.planning hf:examples/configs/gpt3-175b.json --cluster dgx-a100 --nodes 128 --global-batch 1536
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from partitioner import Cluster, search, trace
from tools.models import precision_option
from tools.models.entry_point import parse_settings
from tools.models.load import load
from tools.screen import output, seconds, size, table

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.planning", description=__doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--cluster", required=True, metavar="NAME")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--global-batch", type=int, required=True)
    parser.add_argument("--seq", type=int)
    precision_option.declare(parser)
    parser.add_argument("--set", action="append", default=[], nargs="+", metavar="k=v")
    options = parser.parse_args(arguments)
    settings = parse_settings(word for words in options.set for word in words)
    cluster = Cluster.load(options.cluster, nodes=options.nodes)
    rows: list[list[str]] = []
    source = _timed("load", rows, lambda: load(options.model, settings, seq=options.seq, meta=True))
    precision = precision_option.asked(options, precision_option.usual(cluster))
    graph = _timed("trace", rows, lambda: trace(source.module, source.batch, precision=precision))
    plan = _timed("search", rows, lambda: search(graph, cluster, options.global_batch))
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan.parallelism.mesh.items())
    output().print(table(Path(options.model).name, ("part", "time", "peak memory so far"), rows))
    output().print(f"{cluster.devices} devices, {plan.searched['candidates']} candidates: {mesh}")
    return 0


def _timed(part: str, rows: list[list[str]], run: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows.append([part, seconds(time.perf_counter() - began), size(peak)])
    return result


if __name__ == "__main__":
    raise SystemExit(main())
