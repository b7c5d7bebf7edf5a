"""Measured kernels out of a folder of CSV files, one a kind of kernel, plain or gzipped.

    gemm                 system dtype m n k latency_ms
    attention_forward    system dtype batch seq heads kv_heads head_dim latency_ms, and a window where keys are limited
    nccl                 system op gpus payload_bytes latency_ms
    expert_dispatch      system nodes hidden tokens top_k experts dispatch_us combine_us
"""

from __future__ import annotations

import csv
import gzip
import math
import tomllib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from partitioner.errors import InputError
from partitioner.ops.collective_kinds import KINDS, Kind

COLUMNS = {
    "gemm": ("m", "n", "k"),
    "attention_forward": ("batch", "seq", "heads", "kv_heads", "head_dim", "window"),
    "nccl": ("gpus", "payload_bytes"),
    "expert_dispatch": ("nodes", "hidden", "tokens", "top_k", "experts"),
}
_MAY_LACK = ("window",)
_LEAST = {"window": 0, "gpus": 2}  # of a size; of others 1
_LARGEST, _TIMES = 1e15, (1e-6, 1e12)  # of a size, and of a time in its unit
_TOLD_BY = {"gemm": "dtype", "attention_forward": "dtype", "nccl": "op"}  # the column of what a row's time is of
_TIMED = {"expert_dispatch": {"dispatch": "dispatch_us", "combine": "combine_us"}}  # in one row
_UNITS = {"latency_ms": 1e-3, "dispatch_us": 1e-6, "combine_us": 1e-6}
_ASIDE = 3  # a row in so many is kept from fits


@dataclass(frozen=True)
class Measured:
    """Rows of one kind of kernel on one system: ``of`` a data type, or of an operation. ``sizes``: a row each, with the
    columns of COLUMNS; ``seconds``: what each took."""

    table: str
    system: str
    of: str
    sizes: np.ndarray
    seconds: np.ndarray

    def where(self, chosen: np.ndarray) -> Measured:
        """Some of the rows."""
        return Measured(self.table, self.system, self.of, self.sizes[chosen], self.seconds[chosen])

    @property
    def aside(self) -> np.ndarray:
        """Which rows are kept from fits: a third, by a hash of their sizes, the same on every system."""
        texts = (" ".join(str(int(size)) for size in row) for row in self.sizes)
        return np.array([zlib.crc32(text.encode()) % _ASIDE == 0 for text in texts], bool)


def read_tables(folder: Path | str) -> list[Measured]:
    """All that the folder holds of COLUMNS; raises InputError where it holds nothing, naming a wrong row."""
    found = [group for table in COLUMNS for group in _read(Path(folder), table)]
    if not found:
        names = ", ".join(f"{table}.csv.gz" for table in COLUMNS)
        raise InputError(f"{folder} holds no tables of kernels: give a folder with {names}")
    return found


def _read(folder: Path, table: str) -> list[Measured]:
    for name in (f"{table}.csv.gz", f"{table}.csv"):
        path = folder / name
        if path.exists():
            break
    else:
        return []
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    groups: dict[tuple[str, str], list[list[float]]] = {}
    for line, row in enumerate(rows, 2):
        system = _text(row, "system", path, line)
        timed = _TIMED.get(table) or {_text(row, _TOLD_BY[table], path, line): "latency_ms"}
        sizes = [_number(row, column, path, line) for column in COLUMNS[table]]
        for of, column in timed.items():
            groups.setdefault((system, of), []).append([*sizes, _number(row, column, path, line) * _UNITS[column]])
    made = {key: np.array(numbers) for key, numbers in groups.items()}
    return [Measured(table, *key, rows[:, :-1], rows[:, -1]) for key, rows in made.items()]


def _text(row: dict[str, str], column: str, path: Path, line: int) -> str:
    value = row.get(column)
    if not value:
        raise InputError(f"{path}, line {line}: the column {column} is missing")
    return value


def _number(row: dict[str, str], column: str, path: Path, line: int) -> float:
    text = row.get(column) or ("0" if column in _MAY_LACK else "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    is_time = column in _UNITS
    least, most = _TIMES if is_time else (_LEAST.get(column, 1), _LARGEST)
    if not least <= value <= most or not (is_time or value == int(value)):
        what = "positive number" if is_time else f"whole number from {least:g}"
        raise InputError(f"{path}, line {line}: {column} must be a {what}, it is {text[:60]!r}")
    return value


def systems() -> dict[str, str]:
    """By the name of a system, the preset that stands for it."""
    return _systems()["preset"]


def node_devices(system: str, preset: int) -> int:
    """How many GPUs of a system are a node of the tables; ``preset``: of the preset that stands for it."""
    return _systems()["node_devices"].get(system, preset)


def kind_of(group: Measured) -> Kind:
    """The collective that a group of timings is of; raises InputError for one that is none."""
    name = _systems()["operation"].get(group.of, group.of)
    if name not in KINDS:
        raise InputError(f"{group.of} is no collective known here: {', '.join(KINDS)}")
    return KINDS[name]


def _systems() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("tools.measured_kernels").joinpath("systems.toml").read_text())


def of_table(groups: Sequence[Measured], table: str) -> list[Measured]:
    """Those of one kind of kernel."""
    return [group for group in groups if group.table == table]
