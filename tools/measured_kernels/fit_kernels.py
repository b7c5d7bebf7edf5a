"""A device's numbers fitted to measured kernels, as the tables of a part of a cluster file; a third of the rows is kept
aside, and the errors on it are printed beside.

    python -m tools.measured_kernels.fit_kernels KERNELS --system h100_sxm

Nelder and Mead's simplex from several starts, in coordinates that keep each number within its bounds; the mean
absolute logarithm of predicted over measured is made small.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from scipy.optimize import minimize

from partitioner import Cluster
from partitioner.errors import InputError
from partitioner.hardware.device import Attention, Device, Products
from partitioner.hardware.link import Protocols, TokenExchange
from partitioner.precision import RECIPES
from tools.measured_kernels.kernel_prices import (
    attention_seconds,
    collective_seconds,
    exchange_seconds,
    log_errors,
    over_peak,
    product_seconds,
)
from tools.measured_kernels.kernel_tables import Measured, kind_of, of_table, read_tables, systems
from tools.screen import output
from tools.toml_words import toml_word

EVALUATIONS, ROUNDS, STARTS = 2000, 3, 4
# field: least, most, start
PRODUCT_BOUNDS = {
    "share": (0.3, 1.0, 0.85), "memory_share": (0.5, 1.0, 0.9), "tile_loss": (0.5, 200, 25), "tile_power": (0.5, 6, 3),
    "tile_depth": (0, 600, 128), "last_wave": (0, 1, 0.5), "fixed_seconds": (0, 2e-5, 5e-6), "droop": (0, 1, 0.2),
    "droop_at": (4, 16, 9), "droop_span": (0.2, 4, 1.5), "norm": (1.2, 16, 4), "split_seconds": (0, 2e-5, 1e-6),
    "split_passes": (0, 20, 2),
}  # fmt: skip
QUANTIZED_BOUNDS = {"quantize_seconds": (0, 3e-5, 5e-6), "quantize_bytes_each": (1, 16, 6)}
ATTENTION_BOUNDS = {
    "share": (0.2, 1.0, 0.7), "score_flops_each": (0, 900, 100), "row_overheads": (0, 1500, 150),
    "fixed_seconds": (0, 3e-5, 8e-6), "tail": (0, 3, 0.3), "key_bytes_each": (0, 4000, 600),
}  # fmt: skip
EXCHANGE_BOUNDS = {
    "fixed_seconds": (1e-6, 1e-4, 3e-5), "token_seconds": (0, 1e-7, 1e-8), "bytes_per_second": (1e10, 4e12, 4e11),
    "own_bytes_per_second": (1e10, 2e13, 1e12),
}  # fmt: skip
Vector = np.ndarray


@dataclass(frozen=True)
class Bounded:
    """Numbers between bounds, as coordinates without any."""

    least: Vector
    most: Vector

    def inside(self, x: Vector) -> Vector:
        return self.least + (self.most - self.least) / (1 + np.exp(-np.clip(x, -40, 40)))

    def outside(self, values: Vector) -> Vector:
        share = np.clip((values - self.least) / (self.most - self.least), 1e-3, 1 - 1e-3)
        return np.log(share / (1 - share))


def fitted(loss: Callable[[Vector], float], bounds: Bounded, start: Vector, seed: int = 0) -> Vector:
    """The best numbers that any start leads to."""
    random, best, found = np.random.default_rng(seed), np.inf, start
    for number in range(STARTS):
        x = bounds.outside(start) + random.normal(0, 0.8 * (number > 0), len(start))
        for _ in range(ROUNDS):
            options = {"maxfev": EVALUATIONS, "adaptive": True}
            x = minimize(lambda x: loss(bounds.inside(x)), x, method="Nelder-Mead", options=options).x
        if (reached := loss(bounds.inside(x))) < best:
            best, found = reached, bounds.inside(x)
    return found


def mean(errors: Vector) -> float:
    """As all errors here are stated."""
    return float(np.abs(errors).mean())


def fit_products(group: Measured, device: Device) -> tuple[Products, float, float]:
    """A row for the group's type, its mean error on the rows fitted and on those kept aside."""
    bounds = PRODUCT_BOUNDS | (QUANTIZED_BOUNDS if group.of in RECIPES else {})
    plain = Products((group.of,), 1.0)

    def made(values: Vector) -> Products:
        return replace(plain, **dict(zip(bounds, map(float, values), strict=True)))

    def errors(values: Vector, rows: Measured) -> Vector:
        return log_errors(product_seconds(rows, device, made(values)), rows)

    return _fit(bounds, errors, made, group)


def fit_attention(group: Measured, device: Device) -> tuple[Attention, float, float]:
    """The same of attention, forward."""

    def made(values: Vector) -> Attention:
        return replace(device.attention, **dict(zip(ATTENTION_BOUNDS, map(float, values), strict=True)))

    def errors(values: Vector, rows: Measured) -> Vector:
        return log_errors(attention_seconds(rows, device, made(values)), rows)

    return _fit(ATTENTION_BOUNDS, errors, made, group)


def fit_exchange(group: Measured, cluster: Cluster) -> tuple[TokenExchange, float, float]:
    """The same of a dispatch or combine inside a node."""

    def made(values: Vector) -> TokenExchange:
        return TokenExchange(*map(float, values))

    def errors(values: Vector, rows: Measured) -> Vector:
        return log_errors(exchange_seconds(rows, cluster, made(values)), rows)

    return _fit(EXCHANGE_BOUNDS, errors, made, group.where(group.sizes[:, 0] == 1))


T = TypeVar("T")


def _fit(
    bounds: dict[str, tuple[float, float, float]], errors: Callable[[Vector, Measured], Vector],
    made: Callable[[Vector], T], group: Measured,
) -> tuple[T, float, float]:  # fmt: skip
    least, most, start = map(np.array, zip(*bounds.values(), strict=True))
    seen, kept = group.where(~group.aside), group.where(group.aside)
    best = fitted(lambda x: mean(errors(x, seen)), Bounded(least, most), start)
    return made(best), mean(errors(best, seen)), mean(errors(best, kept))


def fit_protocols(groups: Sequence[Measured], speed: float, lines: int = 3) -> tuple[Protocols, float, float]:
    """Of rings, or of direct sends: all kinds of them together; ``speed`` in bytes a second, where the fit starts."""
    kinds = [kind_of(group).name for group in groups]
    sizes = sorted({int(n) for group in groups for n in group.sizes[:, 0]})
    few, others = sizes[:-1], kinds[1:]

    def made(x: Vector) -> Protocols:
        latency, hop, rate, share, kind = np.split(x, np.cumsum([lines, lines, lines, len(few)]))
        shares = dict(zip(map(str, sizes), [*map(float, share), 1.0], strict=True))
        faster = dict(zip(others, map(float, kind), strict=True))
        return Protocols(tuple(map(float, latency)), tuple(map(float, hop)), tuple(map(float, rate)), shares, faster)

    starts = [
        *np.geomspace(5e-6, 4e-5, lines), *np.geomspace(1e-6, 2e-6, lines), *(speed * np.geomspace(0.04, 0.8, lines)),
        *[0.9] * len(few), *[1.0] * len(others),
    ]  # fmt: skip
    count = lines, len(few), len(others)
    least = [*[1e-6] * lines, *[1e-8] * lines, *[speed * 1e-3] * lines, *[0.3] * count[1], *[0.6] * count[2]]
    most = [*[2e-4] * lines, *[4e-5] * lines, *[speed * 1.1] * lines, *[40.0] * count[1], *[1.5] * count[2]]
    logs = [np.log(np.array(numbers)) for numbers in (least, most, starts)]

    def errors(x: Vector, aside: bool) -> Vector:
        protocols = made(np.exp(x))
        rows = (group.where(group.aside == aside) for group in groups)
        return np.concatenate([log_errors(collective_seconds(row, protocols, protocols), row) for row in rows])

    best = fitted(lambda x: mean(errors(x, aside=False)), Bounded(logs[0], logs[1]), logs[2])
    return made(np.exp(best)), mean(errors(best, aside=False)), mean(errors(best, aside=True))


def written(row: object) -> list[str]:
    """A dataclass as lines of TOML, without what is as it is by default."""
    lines = []
    for f in fields(row):  # type: ignore[arg-type]
        value = getattr(row, f.name)
        if value != f.default:
            lines.append(f"{f.name} = {toml_word(_rounded(value))}")
    return lines


def _rounded(value: Any) -> Any:
    """Four digits of each number."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_rounded, value))
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit what the folder holds of one system."""
    parser = argparse.ArgumentParser(prog="python -m tools.measured_kernels.fit_kernels", description=__doc__)
    parser.add_argument("kernels", metavar="KERNELS", help="a folder, see kernel_tables.py")
    parser.add_argument("--system", required=True, help="as the tables name it")
    parser.add_argument("--only", metavar="TABLE", help="one of COLUMNS of kernel_tables.py")
    options = parser.parse_args(arguments)
    cluster = Cluster.load(systems()[options.system])
    groups = [g for g in read_tables(options.kernels) if g.system == options.system]
    groups = [g for g in groups if options.only in (None, g.table)]
    say = output().print
    for group in of_table(groups, "gemm"):
        if any(group.of in row.types for row in cluster.device.products):
            _say(say, "[[products]]", f"{group.of}, {len(group.seconds)} shapes", *fit_products(group, cluster.device))
    for group in of_table(groups, "attention_forward"):
        if over_peak(group, cluster.device).any():
            raise InputError(f"{options.system} has attention that beats its peak if all keys are seen: give a window")
        _say(say, "[attention]", f"{len(group.seconds)} shapes", *fit_attention(group, cluster.device))
    sent = of_table(groups, "nccl")
    for name, own_part in (("ring", False), ("direct", True)):
        rows = [g for g in sent if kind_of(g).own_part == own_part]
        if rows:
            count, speed = sum(len(g.seconds) for g in rows), cluster.node.bytes_per_second
            _say(say, f"[{name}]", f"{count} rows", *fit_protocols(rows, speed))
    for group in of_table(groups, "expert_dispatch"):
        _say(say, f"[{group.of}]", f"{(group.sizes[:, 0] == 1).sum()} rows", *fit_exchange(group, cluster))
    return 0


def _say(say: Callable[[str], None], table: str, what: str, row: object, seen: float, kept: float) -> None:
    say(f"{table.replace('[', chr(92) + '[')}  # {what}: mean error {100 * seen:.1f} %, kept aside {100 * kept:.1f} %")
    for line in written(row):
        say(line.replace("[", r"\["))


if __name__ == "__main__":
    raise SystemExit(main())
