"""New tokens a second of our generation over those of transformers' ``generate`` with its static cache.

    python -m tools.bench.generation [--configs 1x1,1x8,2x1,2x8] [--rounds 9] [--json out.json]

A config is ranks x texts: our ranks divide the model by tensor parallelism, transformers has one rank; one thread each.
In a round each side continues the same prompts once, in alternating order, with the same weights in float32; the same
tokens are the entry ticket.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from partitioner import Cluster, Graph, search, trace
from partitioner.errors import InputError
from partitioner.sharding.mesh_axes import DP, PP, TP
from runtime.measure.sweep import device_name
from runtime.ranks import launch
from tools.bench.generation_rank import OURS, SPEC, THEIRS, Difference, Job, Timed
from tools.models.entry_point import parse_settings
from tools.models.load import load
from tools.screen import output, percent, table

SETTINGS: dict[str, object] = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 8192, "max_position_embeddings": 1024,
}  # fmt: skip
WARMUP = 2
MOST_APART = 1e-3  # of two logits between which float32 may choose otherwise
MOST_HELD = 1.1  # of an even share of the parameters: what is small lies on all ranks
RESAMPLES, SEED = 10_000, 0
LIMIT_SECONDS = 1800.0


@dataclass(frozen=True)
class Ratio:
    """Seconds of one side over another's, medians of all rounds, with a bootstrap 95 % interval."""

    value: float
    low: float
    high: float

@dataclass(frozen=True)
class Row:
    """Of one config: ``rate``, new tokens a second by side, ``over``: ours over each other side's; ``load``: the
    machine's average before and after."""

    ranks: int
    texts: int
    rate: dict[str, float]
    over: dict[str, Ratio]
    timed: Timed
    load: tuple[float, float]


def ratio(ours: Sequence[float], others: Sequence[float]) -> Ratio:
    """How many times as fast ours are: the others' median over ours; rounds are drawn again (Efron, 1979)."""
    rounds, draw = list(zip(ours, others, strict=True)), random.Random(SEED)

    def of(rows: Sequence[tuple[float, float]]) -> float:
        return statistics.median(b for _, b in rows) / statistics.median(a for a, _ in rows)

    drawn = sorted(of(draw.choices(rounds, k=len(rounds))) for _ in range(RESAMPLES))
    return Ratio(of(rounds), drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES) - 1])


class Bench:
    """Launches of all configs in one folder."""

    def __init__(self, options: argparse.Namespace, settings: dict[str, object], folder: Path) -> None:
        self.options, self.settings, self.folder = options, settings, folder
        source = load(SPEC, self.settings, seq=options.prompt, meta=True)
        self.parameters = sum(p.numel() for p in source.module.parameters())
        self._graph, self._samples = trace(source.module, source.batch, compare=False), len(source.batch["input_ids"])

    def measure(self, ranks: int, texts: int) -> Row:
        """All rounds of one config. Raises InputError where tokens differ by more than a tie."""
        before, timed = os.getloadavg()[0], self._timed(ranks, texts)
        if ranks > 1 and timed.share > MOST_HELD / ranks:
            raise InputError(f"a rank of {ranks} holds {percent(timed.share)} of the parameters: they are not divided")
        for side, row in timed.other.items():
            if row is not None and row.apart > MOST_APART:
                raise InputError(f"{side} and {THEIRS} differ: {_told(row)}")
        made = texts * self.options.new
        rate = {side: made / statistics.median(row) for side, row in timed.seconds.items()}
        over = {side: ratio(timed.seconds[OURS], row) for side, row in timed.seconds.items() if side != OURS}
        return Row(ranks, texts, rate, over, timed, (before, os.getloadavg()[0]))

    def _timed(self, ranks: int, texts: int) -> Timed:
        made, file, options = self.folder / "made.json", self.folder / "job.json", self.options
        alone = _plan(self._graph, self._samples, 1, self.folder) if ranks > 1 else None
        plan = _plan(self._graph, self._samples, ranks, self.folder)
        job = Job(self.settings, plan, alone, texts, options.prompt, options.new, WARMUP, options.rounds, str(made))
        file.write_text(json.dumps(asdict(job)))
        result = launch.local_module("tools.bench.generation_rank", [str(file)], ranks, LIMIT_SECONDS)
        if result.failure is not None:
            raise InputError(f"{ranks}x{texts}: the run stopped: {result.failure}")
        return Timed.load(made)


def _plan(graph: Graph, samples: int, ranks: int, folder: Path) -> str:
    """The file of one whose parameters ``ranks`` divide."""
    pins: dict[str, str | int] = {TP: ranks, PP: 1, DP: 1} | ({"boundary": "whole"} if ranks > 1 else {})
    path = folder / f"{ranks}.plan.json"
    search(graph, Cluster.load("local-cpu", devices=ranks), samples, pins).save(path)
    return str(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.generation", description=__doc__)
    parser.add_argument("--configs", default="1x1,1x8,2x1,2x8", help="ranks x texts, each")
    for name, default in (("rounds", 9), ("prompt", 64), ("new", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--set", action="append", default=[], nargs="+", metavar="k=v", help="of the model's settings")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    settings = SETTINGS | parse_settings(word for words in options.set for word in words)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, settings, Path(folder))
        for config in options.configs.split(","):
            rows.append(bench.measure(*map(int, config.split("x"))))
            output().print(f"{config}: {rows[-1].over[THEIRS].value:.3f} times {THEIRS}")
            if options.json:
                _write(Path(options.json), bench, rows)
    title = f"new tokens a second, {bench.parameters / 1e6:.1f}M parameters, {options.prompt} + {options.new} tokens"
    lines = [line for row in rows for line in _cells(row)]
    output().print(table(title, _COLUMNS, lines, ("against", "tokens")))
    output().print(", ".join(f"{name} {value}" for name, value in _machine().items()))
    return 0


_COLUMNS = ("ranks", "texts", "ours", "against", "theirs", "ratio", "95 %", "tokens", "load")


def _cells(row: Row) -> list[list[str]]:
    """A line for each side that ours stands against."""
    load = "{:.1f}, {:.1f}".format(*row.load)
    return [
        [str(row.ranks), str(row.texts), f"{row.rate[OURS]:.1f}", side, f"{row.rate[side]:.1f}", f"{over.value:.3f}",
         f"{over.low:.3f} to {over.high:.3f}", _tokens(row.timed), load]
        for side, over in row.over.items()
    ]  # fmt: skip


def _tokens(timed: Timed) -> str:
    """Whether all sides make the same, and where not."""
    told = [f"{side}: {_told(row)}" for side, row in timed.other.items() if row is not None]
    return "; ".join(told) or "equal"


def _told(row: Difference) -> str:
    return f"text {row.text} at new token {row.token}: {row.ours}, not {row.theirs}, logits {row.apart:.1e} apart"


def _machine() -> dict[str, str]:
    """What the figures hang on."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"machine": device_name(torch.device("cpu")), **versions, "threads a rank": "1"}


def _write(path: Path, bench: Bench, rows: list[Row]) -> None:
    options = bench.options
    asked = {"settings": bench.settings, "prompt": options.prompt, "new": options.new, "rounds": options.rounds}
    document = {**asked, **_machine(), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
