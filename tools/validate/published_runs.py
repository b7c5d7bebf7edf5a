"""Measured training runs out of a CSV file, one a row: dimensions, hardware, the parallel configuration, the time."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from partitioner.errors import InputError
from partitioner.sharding.mesh_axes import CP, DP, PP, TP
from tools.models.plain_decoder import Dimensions

RECOMPUTE = {
    "": "", "none": "none", "unstated": "", "full": "full", "selective": "selective",
    "selective-op": "operators", "selective-layer": "layers", "selective per op": "operators",
    "selective (torchtitan default)": "operators", "selective (every op or layer, torchtitan default)": "operators",
}  # fmt: skip
DTYPES = {  # in which a model computes, and by which recipe the products of its blocks run
    "bf16": ("bfloat16", ""), "fp16": ("float16", ""), "fp32": ("float32", ""), "fp8": ("bfloat16", "fp8"),
    "fp8-cs": ("bfloat16", "fp8"), "fp8-rows": ("bfloat16", "fp8"),
    "mxfp8": ("bfloat16", "mxfp8"), "nvfp4": ("bfloat16", "nvfp4"),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """``recompute``: one of RECOMPUTE's words, "" where not stated. ``zero``, ``sequence_parallel``, ``overlap_tensor``
    and ``compiled`` are None where not stated. ``is_reserved``: ``peak_bytes`` are an allocator's, and not tensors'.

    ``strange``: why the row's numbers do not go together, "" where they do.
    """

    line: int
    name: str
    group: str
    model: str
    size: Dimensions
    gpu: str
    cluster: str
    interconnect: str
    framework: str
    gpus: int
    gpus_per_node: int
    tp: int
    pp: int
    virtual: int
    cp: int
    dp: int
    sequence_parallel: bool | None
    recompute: str
    zero: int | None
    zero_group: int | None
    overlap_gradients: bool
    overlap_tensor: bool | None
    compiled: bool | None
    micro_batch: int
    global_batch: int
    precision: str
    step_seconds: float
    peak_bytes: float | None
    is_reserved: bool = True
    strange: str = ""

    @property
    def degrees(self) -> dict[str, int]:
        """Of the mesh."""
        return {PP: self.pp, DP: self.dp, CP: self.cp, TP: self.tp}

    @property
    def configuration(self) -> tuple[object, ...]:
        """All but name, place in the file and what was measured; in the words by which runs were kept aside."""
        skipped = ("line", "name", "step_seconds", "peak_bytes", "is_reserved")
        told = vars(self) | {"sequence_parallel": bool(self.sequence_parallel), "recompute": self.recompute or "none"}
        return tuple(value for key, value in told.items() if key not in skipped)


def read(path: Path | str) -> list[Run]:
    """Every row; raises InputError naming the row and the column that is missing or absurd."""
    try:
        with Path(path).open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise InputError(f"{path} has no rows: give a CSV file with a header and a run a row")
    return list(_runs(str(path), rows))


def _runs(origin: str, rows: list[dict[str, str]]) -> Iterator[Run]:
    for number, row in enumerate(rows, 2):
        yield _Cells(f"{origin}, line {number}", row).run(number)


def _strange(run: Run) -> str:
    product = math.prod(run.degrees.values())
    size = run.size
    for part, whole, name in ((size.heads, size.hidden, "heads"), (size.kv_heads, size.heads, "kv_heads")):
        if whole % part:
            return f"{name} {part} does not divide {whole}"
    if product != run.gpus:
        return f"tp x pp x cp x dp is {product}, gpus {run.gpus}"
    if run.global_batch % (run.dp * run.micro_batch):
        return f"global_batch {run.global_batch} is no multiple of dp {run.dp} x micro_batch {run.micro_batch}"
    if run.precision not in DTYPES:
        return f"precision {run.precision} is none of {', '.join(DTYPES)}"
    return ""


class _Cells:
    """A row that knows where it stands."""

    def __init__(self, where: str, row: Mapping[str, str | None]) -> None:
        self.where, self.row, self.blank = where, row, list[str]()

    def run(self, line: int) -> Run:
        size = Dimensions(
            self.count("layers"), self.count("hidden"), self.count("heads"), self.count("kv_heads"),
            self.count("ffn"), self.flag("gated_mlp"), self.count("vocab"), self.flag("tied_embeddings"),
            self.count("seq"), self.word("attention", ("", "flash", "unfused")) == "unfused", self.adapter(),
        )  # fmt: skip
        run = Run(
            line, self.text("run_id"), self.text("group"), self.text("model"), size, self.text("gpu"),
            self.text("cluster"), self.text("interconnect"), self.text("framework"), self.count("gpus"),
            self.count("gpus_per_node"), self.count(TP), self.count(PP), self.optional("virtual_stages") or 1,
            self.count(CP), self.count(DP), self.stated("sequence_parallel"),
            RECOMPUTE.get(self.text("recompute"), self.text("recompute")), self.zero(),
            self.optional("zero_group"), self.flag("grad_overlap"), self.stated("tp_overlap"), self.stated("compiled"),
            self.count("micro_batch"), self.count("global_batch"), self.precision(),
            self.number("step_seconds"), self.memory(), "peak_memory_usage" not in self.text("memory_unit"),
        )  # fmt: skip
        return replace(run, strange=self.unpriced() or _strange(run))

    def precision(self) -> str:
        """As stated, and whether a scale is of a row."""
        return self.text("precision") + ("-rows" if "rowwise" in (self.row.get("notes") or "") else "")

    def unpriced(self) -> str:
        """What the row has that is not priced, or lacks; "" for nothing."""
        if self.row.get("experts"):
            return "a mixture of experts: not priced yet"
        if "LoRA" in self.notes and not self.adapter():
            return "its base is frozen (LoRA), of adapters whose rank is not stated"
        if self.text("recompute") not in RECOMPUTE:
            return f"recompute {self.text('recompute')} is none of {', '.join(word for word in RECOMPUTE if word)}"
        lacks = [*self.blank, *(column for column in ("precision", "virtual_stages") if not self.text(column))]
        return f"the column {lacks[0]} is blank" if lacks else ""

    @property
    def notes(self) -> str:
        return self.row.get("notes") or ""

    def adapter(self) -> int:
        """The rank of LoRA's adapters, 0 where all is trained."""
        found = re.search(r"rank (\d+) adapters", self.notes) if "LoRA" in self.notes else None
        return int(found[1]) if found else 0

    def zero(self) -> int | None:
        """ZeRO's stage, where it is stated."""
        word = self.word("zero", ("", "0", "1", "2", "3"))
        return int(word) if word else None

    def text(self, column: str) -> str:
        value = self.row.get(column)
        if value is None:
            raise InputError(f"{self.where}: the column {column} is missing")
        return value.strip()

    def number(self, column: str) -> float:
        """A positive finite number; 1 for one that is blank, which then is said of the row."""
        if not self.text(column):
            self.blank.append(column)
            return 1.0
        try:
            value = float(self.text(column))
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value <= 0:
            raise InputError(f"{self.where}: {column} must be a positive number, it is {self.text(column)!r}")
        return value

    def count(self, column: str) -> int:
        value = self.number(column)
        if value != int(value):
            raise InputError(f"{self.where}: {column} must be a whole number, it is {self.text(column)!r}")
        return int(value)

    def word(self, column: str, known: tuple[str, ...]) -> str:
        value = self.text(column)
        if value not in known:
            words = ", ".join(k for k in known if k)
            raise InputError(f"{self.where}: {column} must be one of {words}, it is {value!r}")
        return value

    def flag(self, column: str) -> bool:
        """1, or 0 or blank."""
        return self.word(column, ("", "0", "1")) == "1"

    def stated(self, column: str) -> bool | None:
        return None if self.text(column) == "" else self.flag(column)

    def optional(self, column: str) -> int | None:
        return None if self.text(column) == "" else self.count(column)

    def memory(self) -> float | None:
        """Bytes; the unit's first word is GiB, or else 1e9 bytes."""
        if self.text("peak_gb") == "":
            return None
        return self.number("peak_gb") * (2.0**30 if self.text("memory_unit").startswith("GiB") else 1e9)
