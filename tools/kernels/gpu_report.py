"""What ``gpu_check`` measured as Markdown: the machine, numerics, GEMMs with ratios, blocks, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """The whole page, from the JSON's data."""
    parts = [_machine(report["machine"]), _numerics(report["numerics"]), _table(report["table"])]
    parts += [_blocks(report["blocks"]), _left_out(report["left_out"])]
    return "# Kernels on a GPU\n\n" + "\n\n".join("\n".join(part) for part in parts) + "\n"


def geometric_mean(values: Iterable[float]) -> float | None:
    """None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def ratios(table: list[dict[str, Any]], rival: str, fused: bool = True) -> list[float]:
    """That rival's time over our fastest right kernel's, where both were measured."""
    rows = [row for row in table if bool(row["ops"]) is fused and rival in row["rivals"]]
    return [row["rivals"][rival] / ours for row in rows if (ours := _ours(row)) is not None]


def _ours(row: dict[str, Any]) -> float | None:
    return min((k["seconds"] for k in row["kernels"] if k["seconds"] is not None), default=None)


def _machine(machine: dict[str, str]) -> Iterator[str]:
    yield "; ".join(f"{key} {value}" for key, value in machine.items())


def _numerics(rows: list[dict[str, Any]]) -> Iterator[str]:
    wrong = [row for row in rows if not row["right"]]
    worst = max((error / row["bound"] for row in rows for error in row["errors"].values()), default=0.0)
    yield "## Numbers against float64"
    yield ""
    right = len(rows) - len(wrong)
    yield f"{len(rows)} kernels at odd sizes, {right} right; the largest error is {worst:.2f} of its bound."
    for row in wrong:
        why = row["reason"] or ", ".join(f"{size}: {error:.1e}" for size, error in row["errors"].items())
        yield f"* wrong: {row['kernel']} of {row['digest'][:8]}: {why}"


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "## GEMMs"
    yield ""
    for words, rival, fused in (
        ("torch.compile over ours, fused", "torch.compile", True),
        ("eager over ours, fused", "eager", True),
        ("cuBLAS over ours, nothing fused", "eager", False),
    ):
        found = ratios(rows, rival, fused)
        mean = geometric_mean(found)
        yield f"* {words}: {'not measured' if mean is None else f'{mean:.3f}x, geometric mean of {len(found)}'}"
    chosen = [row["chosen"]["torch_seconds"] / row["chosen"]["seconds"] for row in rows if row["chosen"]["key"]]
    least = f", the least {min(chosen):.3f}x torch's fastest" if chosen else ""
    yield f"* kernels chosen for {len(chosen)} of {len(rows)}{least}"
    yield ""
    yield "| product | m x n x k | as it stores | eager us | compile us | ours us | TFLOP/s | chosen |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield f"| {' | '.join(_cells(row))} |"


def _cells(row: dict[str, Any]) -> Iterator[str]:
    ours = _ours(row)
    yield row["name"]
    yield " x ".join(map(str, row["sizes"]))
    yield ", ".join(row["ops"])
    yield from (_microseconds(row["rivals"].get(rival)) for rival in ("eager", "torch.compile"))
    yield _microseconds(ours)
    yield "" if ours is None else f"{2 * math.prod(row['sizes']) / ours / 1e12:.0f}"
    yield row["chosen"]["kernel"] or f"torch: {row['chosen']['reason']}"


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f}"


def _blocks(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Blocks and steps"
    yield ""
    yield "| what | eager ms | compile ms | ours ms | compile over ours | kernels of ours that ran | dispatched |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        times = row["seconds"]
        shown = [f"{times[way] * 1e3:.2f}" if way in times else "" for way in ("eager", "torch.compile", "ours")]
        ratio = f"{times['torch.compile'] / times['ours']:.3f}x" if "torch.compile" in times else ""
        words = "; ".join(f"{count} {reason}" for reason, count in row["dispatched"].items())
        yield f"| {' | '.join([row['name'], *shown, ratio, str(row['ours']), words or 'no product has a kernel'])} |"


def _left_out(rows: list[str]) -> Iterator[str]:
    if rows:
        yield "## Left out"
        yield ""
        yield from (f"* {row}" for row in rows)
