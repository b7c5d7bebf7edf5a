"""The GEMMs that ``gpu_check`` measures, out of plans of published models, and their kernels, built with no GPU.

    python -m tools.kernels.gpu_table DIR [--arch sm_90a]  writes DIR/table.json and a kernel for each tile of each GEMM

A model's block is traced, planned at each degree of tensor parallelism and fused like any other: the rows are what a
program of it would run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cutlass_ops.spec import spec
from cutlass_ops.spec.spec import Gemm
from cutlass_ops.spec.targets import ARCHITECTURES
from cutlass_ops.tuning import candidates
from partitioner import Cluster, search, trace
from partitioner.emit.product_rows import ROLES, Sizes, gemms
from partitioner.sharding.mesh_axes import DP, PP, TP
from tools.models.plain_decoder import Dimensions, decoder
from tools.screen import status

SEQ = 2048
MODELS = {
    "GPT-3 1.3B": Dimensions(2, 2048, 16, 16, 8192, False, 51200, True, SEQ, False),
    "GPT-3 6.7B": Dimensions(2, 4096, 32, 32, 16384, False, 51200, True, SEQ, False),
    "GPT-3 175B": Dimensions(2, 12288, 96, 96, 49152, False, 51200, True, SEQ, False),
    "Llama-3 8B": Dimensions(2, 4096, 32, 8, 14336, True, 128256, False, SEQ, False),
    "Llama-3 70B": Dimensions(2, 8192, 64, 8, 28672, True, 128256, False, SEQ, False),
}
# model, tp, micro-batch of SEQ tokens
ROWS = (
    ("GPT-3 1.3B", 1, 1),
    ("GPT-3 1.3B", 1, 4),
    ("GPT-3 6.7B", 1, 2),
    ("GPT-3 6.7B", 2, 4),
    ("GPT-3 175B", 8, 1),
    ("GPT-3 175B", 4, 2),
    ("Llama-3 8B", 1, 4),
    ("Llama-3 8B", 2, 8),
    ("Llama-3 70B", 4, 2),
    ("Llama-3 70B", 8, 4),
)


@dataclass(frozen=True)
class GemmRow:
    """One GEMM of a model's block: whose it is, what it computes, m, n and k."""

    name: str
    gemm: Gemm
    sizes: Sizes


def rows(model: str, tp: int, micro_batch: int) -> Iterator[GemmRow]:
    """Of one block, forward and gradients, each once; the embedding and the head are left out."""
    module, batch = decoder(MODELS[model], torch.bfloat16, micro_batch)
    pins: dict[str, str | int] = {TP: tp, PP: 1, DP: 8 // tp, "micro_batch": micro_batch}
    plan = search(trace(module, batch), Cluster.load("dgx-h100"), micro_batch * 8 // tp, pins)
    block = next(block for block in plan.blocks if block.units[0].startswith("blocks."))
    for product in block.products:
        for role, (gemm, sizes) in zip(ROLES, gemms(product, product.dtype), strict=True):
            yield GemmRow(f"{model} {TP} {tp} {product.module.removeprefix('blocks.0.')} {role}", gemm, sizes)


def table() -> list[GemmRow]:
    """All rows; a product of the same GEMM and size stands once, by its first name."""
    found: dict[tuple[Gemm, Sizes], GemmRow] = {}
    for row in (row for model in ROWS for row in rows(*model)):
        found.setdefault((row.gemm, row.sizes), row)
    return list(found.values())


def save(found: list[GemmRow], path: Path) -> None:
    """Write JSON, a row a line."""
    lines = [json.dumps({"name": r.name, "gemm": json.loads(spec.to_json(r.gemm)), "sizes": r.sizes}) for r in found]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def load(path: Path) -> list[GemmRow]:
    """What ``save`` wrote."""
    data = json.loads(path.read_text())
    return [GemmRow(r["name"], spec.from_json(json.dumps(r["gemm"])), tuple(r["sizes"])) for r in data]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a GEMM has no kernel."""
    parser = argparse.ArgumentParser(prog="gpu_table", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--arch", choices=ARCHITECTURES, default="sm_90a")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    without = 0
    with status("tracing") as say:
        found = table()
        save(found, options.folder / "table.json")
        first = {row.gemm: row for row in reversed(found)}
        for n, row in enumerate(first.values()):
            say(f"compiling {n + 1} of {len(first)}: {row.name}")
            made = candidates.built(row.gemm, options.arch, options.folder, every=True)
            sys.stdout.write(f"{row.name}: {len(made.entries)} kernels; {'; '.join(made.reasons) or 'none left out'}\n")
            without += not made.entries
    size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    sys.stdout.write(f"{len(found)} products, {len(first)} GEMMs, {size / 1e6:.1f} MB in {options.folder}\n")
    return int(without > 0)


if __name__ == "__main__":
    sys.exit(main())
