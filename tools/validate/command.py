"""``partitioner validate RUNS.csv``: published training runs predicted, and how far off the predictions are."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files

import numpy as np

from partitioner.errors import InputError
from tools.measured_kernels.kernel_errors import kernels_document, print_kernels
from tools.screen import output, seconds, size, status, table
from tools.validate.kept_aside import kept_aside
from tools.validate.predict_run import Rerun
from tools.validate.published_runs import Run, read
from tools.validate.published_sources import sources

OWN_RUNS = str(files("tools.validate").joinpath("published_runs.csv"))  # that come with the package
LEAST_RANKED = 8  # rows of one model and GPU count for a rank correlation to mean something


@dataclass(frozen=True)
class Predicted:
    """A run beside its prediction; ``peak_bytes``: of tensors or of what an allocator reserves, as the run's are.
    ``others``: seconds where what the row leaves open is decided otherwise, by what that is."""

    run: Run
    step_seconds: float
    peak_bytes: float
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Relative, above 0 where the prediction is longer."""
        return self.step_seconds / self.run.step_seconds - 1


@dataclass(frozen=True)
class Refused:
    """A row that can't be expressed, and why."""

    line: int
    name: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """Errors of some rows: shares of what was measured. ``rank`` is the median over its groups of at least 8 rows that
    share model and GPU count of Spearman's correlation, ``regret`` of what the row predicted fastest loses.
    ``aside_mean``: of the rows that no fit has seen (kept_aside.py)."""

    name: str
    rows: int
    mean: float
    median: float
    worst: float
    bias: float
    ranked: int
    rank: float | None
    regret: float | None
    memory_rows: int
    memory_mean: float | None
    memory_rank: float | None
    aside_rows: int = 0
    aside_mean: float | None = None


def validate_command(options: argparse.Namespace) -> int:
    """Predict every row, then sum up by group; or measured kernels."""
    if options.runs is not None and options.kernels is not None:
        raise InputError("name a file of runs, or a folder of kernels with --kernels, not both")
    if options.kernels is not None and options.rows:
        raise InputError("--rows lists runs, and --kernels has none: leave it out")
    if options.kernels is not None:
        if options.json:
            options.document(kernels_document(options.kernels))
        else:
            print_kernels(options.kernels)
        return 0
    runs = read(options.runs or OWN_RUNS)
    rerun, found, refused = Rerun(sources()), list[Predicted](), list[Refused]()
    with status("reading") as say:
        for number, run in enumerate(sorted(runs, key=lambda r: str(r.size))):
            say(f"{number} of {len(runs)} runs predicted")
            try:
                found.append(predicted(run, rerun))
            except InputError as error:
                refused.append(Refused(run.line, run.name, str(error)))
    found.sort(key=lambda p: p.run.line)
    refused.sort(key=lambda r: r.line)
    groups = dict.fromkeys(p.run.group for p in found)
    aside = kept_aside(runs)
    rows = [summary(name, [p for p in found if p.run.group == name], aside) for name in groups]
    rows.append(summary("all", found, aside))
    if options.json:
        options.document(_document(found, refused, rows, noise(runs)))
    else:
        _print(found, options.rows, refused, rows, noise(runs))
    return 0


def predicted(run: Run, rerun: Rerun) -> Predicted:
    """Beside it, what it would be where the row leaves something open; raises InputError as ``Rerun.predict`` does."""
    cost, share = rerun.predict(run), rerun.cluster(run).device.allocator_share if run.is_reserved else 1.0
    others = {words: rerun.predict(other).step_seconds for words, other in rerun.others(run).items()}
    return Predicted(run, cost.step_seconds, cost.peak_bytes / share, others)


def left_open(found: Sequence[Predicted]) -> list[str]:
    """A line for each decision that rows leave open: how far off they are as it was taken, and otherwise."""
    lines = list[str]()
    for words in dict.fromkeys(words for p in found for words in p.others):
        rows = [p for p in found if words in p.others]
        taken = statistics.mean(abs(p.error) for p in rows)
        other = statistics.mean(abs(p.others[words] / p.run.step_seconds - 1) for p in rows)
        lines.append(
            f"whether {words} is not said by {len(rows)} of {len(found)} rows: {100 * taken:.1f} % off without, "
            f"{100 * other:.1f} % if so"
        )
    return lines


def summary(name: str, rows: Sequence[Predicted], aside: Container[int] = ()) -> Summary:
    """Errors, and rank correlations within groups, of some predictions; ``aside``: lines that no fit has seen."""
    if not rows:
        none = float("nan")
        return Summary(
            name, rows=0, mean=none, median=none, worst=none, bias=none, ranked=0, rank=None, regret=None,
            memory_rows=0, memory_mean=None, memory_rank=None,
        )  # fmt: skip
    errors = np.array([p.error for p in rows])
    unseen = [abs(p.error) for p in rows if p.run.line in aside]
    ranks = [ranked(group) for group in alike(rows)]
    remembered = [p for p in rows if p.run.peak_bytes is not None]
    memory = [p.peak_bytes / p.run.peak_bytes - 1 for p in remembered if p.run.peak_bytes]
    memory_ranks = [
        spearman([p.peak_bytes for p in g], [p.run.peak_bytes or 0.0 for p in g]) for g in alike(remembered)
    ]
    return Summary(
        name, rows=len(rows), mean=float(np.abs(errors).mean()), median=float(np.median(np.abs(errors))),
        worst=float(np.abs(errors).max()), bias=float(errors.mean()), ranked=len(ranks),
        rank=_median([r for r, _ in ranks]), regret=_median([r for _, r in ranks]), memory_rows=len(remembered),
        memory_mean=float(np.abs(memory).mean()) if memory else None, memory_rank=_median(memory_ranks),
        aside_rows=len(unseen), aside_mean=float(np.mean(unseen)) if unseen else None,
    )  # fmt: skip


def alike(rows: Sequence[Predicted]) -> list[list[Predicted]]:
    """Groups of at least 8 rows that share source, model and GPU count."""
    found: dict[object, list[Predicted]] = {}
    for p in rows:
        found.setdefault((p.run.group, p.run.model, p.run.gpus), []).append(p)
    return [group for group in found.values() if len(group) >= LEAST_RANKED]


def ranked(rows: Sequence[Predicted]) -> tuple[float, float]:
    """Spearman's correlation, and how much slower the row predicted fastest is than the fastest."""
    measured = [p.run.step_seconds for p in rows]
    chosen = min(rows, key=lambda p: p.step_seconds)
    return spearman([p.step_seconds for p in rows], measured), chosen.run.step_seconds / min(measured) - 1


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of ranks, equal values sharing their mean rank; 0 where one side does not vary."""
    x, y = (_ranks(np.array(v)) for v in (a, b))
    if not x.std() or not y.std():
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def noise(runs: Sequence[Run]) -> float | None:
    """The largest difference among rows equal in all columns but the time, a share of their mean."""
    found: dict[object, list[float]] = {}
    for run in runs:
        found.setdefault(run.configuration, []).append(run.step_seconds)
    spreads = [(max(v) - min(v)) / statistics.mean(v) for v in found.values() if len(v) > 1]
    return max(spreads, default=None)


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _document(
    found: Sequence[Predicted], refused: Sequence[Refused], rows: Sequence[Summary], floor: float | None
) -> str:
    listed = [
        {
            "run_id": p.run.name, "group": p.run.group, "line": p.run.line, "measured_seconds": p.run.step_seconds,
            "predicted_seconds": p.step_seconds, "error": p.error, "measured_bytes": p.run.peak_bytes,
            "predicted_bytes": p.peak_bytes, "otherwise_seconds": dict(p.others),
        }
        for p in found
    ]  # fmt: skip
    whole = {
        "groups": [asdict(r) for r in rows], "noise_floor": floor, "rows": listed,
        "refused": [asdict(r) for r in refused],
    }  # fmt: skip
    return json.dumps(whole, indent=1) + "\n"


def _print(
    found: Sequence[Predicted], is_listed: bool, refused: Sequence[Refused], rows: Sequence[Summary],
    floor: float | None,
) -> None:  # fmt: skip
    console = output()
    if found and is_listed:
        console.print(table("runs", ("run", "measured", "predicted", "error", "memory", "predicted"), _listed(found)))
    columns = ("group", "rows", "mean error", "median", "worst", "bias", "kept aside", "rank", "regret", "memory",
               "memory rank")  # fmt: skip
    console.print(table("step time, predicted against measured", columns, [_words(r) for r in rows]))
    for line in left_open(found):
        console.print(line)
    if floor is not None:
        console.print(f"rows equal in every column differ by up to {100 * floor:.1f} %: no prediction can be closer")
    if refused:
        listed = [[str(r.line), r.name, r.reason] for r in refused]
        console.print(table(f"{len(refused)} rows that can't be expressed", ("line", "run", "why"), listed))


def _listed(found: Sequence[Predicted]) -> list[list[str]]:
    return [
        [
            p.run.name, seconds(p.run.step_seconds), seconds(p.step_seconds), f"{100 * p.error:+.1f} %",
            size(p.run.peak_bytes) if p.run.peak_bytes else "", size(p.peak_bytes),
        ]
        for p in found
    ]  # fmt: skip


def _words(row: Summary) -> list[str]:
    percent: Callable[[float | None], str] = lambda x: "" if x is None else f"{100 * x:.1f} %"  # noqa: E731
    number: Callable[[float | None], str] = lambda x: "" if x is None else f"{x:.3f}"  # noqa: E731
    return [
        row.name, str(row.rows), percent(row.mean), percent(row.median), percent(row.worst), percent(row.bias),
        f"{percent(row.aside_mean)} of {row.aside_rows}" if row.aside_rows else "", number(row.rank),
        percent(row.regret), percent(row.memory_mean), number(row.memory_rank),
    ]  # fmt: skip
