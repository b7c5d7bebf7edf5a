"""``partitioner validate --kernels FOLDER``: measured kernels beside what the price says, by table, GPU and type.

A system's name stands for the preset that systems.toml gives it. Bursts run at full clocks, so nothing is taken off
for what a GPU sustains in a long run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from partitioner import Cluster
from partitioner.errors import InputError
from tools.measured_kernels.kernel_prices import (
    attention_seconds,
    collective_seconds,
    exchange_seconds,
    over_peak,
    product_seconds,
)
from tools.measured_kernels.kernel_tables import Measured, read_tables, systems
from tools.screen import output, table

WINDOWS = (0, *(2**n for n in range(6, 14)))  # that attention without a column for it may have been measured with


@dataclass(frozen=True)
class KernelErrors:
    """Errors of some rows, shares of what was measured. ``aside``: the mean of the third that no fit has seen."""

    table: str
    system: str
    device: str
    of: str
    rows: int
    mean: float
    median: float
    worst: float
    bias: float
    aside: float | None
    note: str


@dataclass(frozen=True)
class Unpriced:
    """Rows that no preset prices, and why."""

    table: str
    system: str
    of: str
    rows: int
    reason: str


def compared(groups: Sequence[Measured]) -> tuple[list[KernelErrors], list[Unpriced]]:
    """Every group of rows, priced or named with the reason why it is not."""
    found, left = list[KernelErrors](), list[Unpriced]()
    presets = systems()
    for group in groups:
        name = presets.get(group.system)
        try:
            if name is None:
                raise InputError(f"no preset stands for {group.system}")
            found.append(_errors(group, Cluster.load(name)))
        except InputError as error:
            left.append(Unpriced(group.table, group.system, group.of, len(group.seconds), str(error)))
    return found, left


def _errors(group: Measured, cluster: Cluster) -> KernelErrors:
    predicted, note = _priced(group, cluster)
    errors = predicted / group.seconds - 1
    size, aside = np.abs(errors), group.aside
    return KernelErrors(
        group.table, group.system, cluster.device.name, group.of, len(errors), mean=float(size.mean()),
        median=float(np.median(size)), worst=float(size.max()), bias=float(errors.mean()),
        aside=float(size[aside].mean()) if aside.any() else None, note=note,
    )  # fmt: skip


def _priced(group: Measured, cluster: Cluster) -> tuple[np.ndarray, str]:
    if group.table == "gemm":
        return product_seconds(group, cluster.device), ""
    if group.table == "nccl":
        if cluster.node.ring is None or cluster.node.direct is None:
            raise InputError(f"{cluster.name} has no collectives measured inside a node")
        return collective_seconds(group, cluster.node.ring, cluster.node.direct), ""
    if group.table == "expert_dispatch":
        return exchange_seconds(group, cluster), ""
    impossible = over_peak(group, cluster.device)
    if not impossible.any():
        return attention_seconds(group, cluster.device), ""
    windowed = {window: _windowed(group, window) for window in WINDOWS}
    prices = {window: attention_seconds(rows, cluster.device) for window, rows in windowed.items()}
    seen = ~group.aside if not group.aside.all() else group.aside
    window = min(WINDOWS, key=lambda w: float(np.median(np.abs(np.log(prices[w] / group.seconds)[seen]))))
    rows = f"{impossible.sum()} of {len(group.seconds)} rows are faster than its peak allows if queries see all keys"
    taken = f"for a window of {window} keys" if window else "as they are"
    return prices[window], f"{rows}: all are taken {taken}"


def _windowed(group: Measured, window: int) -> Measured:
    sizes = group.sizes.copy()
    sizes[:, -1] = np.where(sizes[:, -1] > 0, sizes[:, -1], window)
    return replace(group, sizes=sizes)


def kernels_document(folder: str) -> str:
    """One JSON document."""
    found, left = compared(read_tables(folder))
    return json.dumps({"tables": [asdict(e) for e in found], "unpriced": [asdict(u) for u in left]}, indent=1) + "\n"


def print_kernels(folder: str) -> None:
    """A table, and what was not priced."""
    found, left = compared(read_tables(folder))
    columns = ("kernels", "system", "of", "rows", "mean error", "median", "worst", "bias", "kept aside")
    console = output()
    console.print(table("measured kernels, predicted against measured", columns, [_words(e) for e in found]))
    for row in found:
        if row.note:
            console.print(f"{row.table}, {row.system}: {row.note}")
    if left:
        rows = [[u.table, u.system, u.of, str(u.rows), u.reason] for u in left]
        console.print(table("not priced", ("kernels", "system", "of", "rows", "why"), rows))


def _words(row: KernelErrors) -> list[str]:
    shares = row.mean, row.median, row.worst
    percents = [*(f"{100 * share:.1f} %" for share in shares), f"{100 * row.bias:+.1f} %"]
    aside = f"{100 * row.aside:.1f} %" if row.aside is not None else ""
    return [row.table, row.system, row.of, str(row.rows), *percents, aside]
