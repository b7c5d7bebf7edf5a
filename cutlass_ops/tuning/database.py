"""What was measured on a device: for each GEMM at a size the fastest way to run it, in a JSON file of its own.

One file is of one device, driver and set of versions. A model's sizes are exact; its tokens (m, or k where ``a`` is
stored "k m": a weight's gradient) share a bucket up to the next power of two. Torch is a legal winner: then ``key`` is
"" and ``reason`` says by how much.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from cutlass_ops.spec.spec import Gemm

VERSION = 1


@dataclass(frozen=True)
class Measured:
    """``seconds`` are the winner's median, ``torch_seconds`` that of torch's fastest way, ``rival`` that way's name.

    ``digest`` and ``a`` are the spec's; ``key`` and ``kernel`` the winning kernel's key and name, "" for torch.
    """

    digest: str
    a: str
    m: int
    n: int
    k: int
    key: str
    kernel: str
    seconds: float
    torch_seconds: float
    rival: str
    reason: str = ""


@dataclass(frozen=True)
class Database:
    device: str
    driver: str
    versions: dict[str, str]
    rows: tuple[Measured, ...] = ()

    def look(self, gemm: Gemm, m: int, n: int, k: int) -> Measured | None:
        """What was measured for products of this size, or None."""
        return _index(self.rows).get((gemm.digest, *bucket(gemm.a, m, n, k)))

    def save(self, path: Path) -> None:
        """Write JSON, a row a line, in the order of specs and sizes."""
        head = {"version": VERSION, "device": self.device, "driver": self.driver, "versions": self.versions}
        rows = sorted(self.rows, key=lambda row: (row.digest, row.n, row.k, row.m))
        lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
        path.write_text(json.dumps(head)[:-1] + f', "rows": [\n{lines}\n]}}\n')


def bucket(a: str, m: int, n: int, k: int) -> tuple[int, int, int]:
    """The sizes, tokens raised to the next power of two."""
    return (m, n, _raised(k)) if a == "k m" else (_raised(m), n, k)


def _raised(tokens: int) -> int:
    return 1 << max(0, tokens - 1).bit_length()


def load(path: str) -> Database:
    """ValueError naming the file where it is none; OSError where it can't be read."""
    return _load(path, Path(path).stat().st_mtime_ns)


@cache
def _load(path: str, written: int) -> Database:
    try:
        data = json.loads(Path(path).read_text())
        if data.pop("version") != VERSION:
            raise ValueError(f"its version is not {VERSION}")
        rows = tuple(Measured(**row) for row in data.pop("rows"))
        return Database(**data, rows=rows)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no kernel database: {error}") from error


@cache
def _index(rows: tuple[Measured, ...]) -> dict[tuple[str, int, int, int], Measured]:
    return {(row.digest, *bucket(row.a, row.m, row.n, row.k)): row for row in rows}
