"""``partitioner kernels``: compile the CUTLASS kernels that a plan's products need, list what is built; no GPU needed.

``tune`` times them on one, against torch, into a database that a cluster file can name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import torch

from cutlass_ops.building import build
from cutlass_ops.building.build import Entry
from cutlass_ops.spec.spec import Gemm
from cutlass_ops.tuning import candidates, tune
from cutlass_ops.tuning.database import Measured
from partitioner import Plan
from partitioner.emit.product_rows import ROLES, Sizes, gemms
from partitioner.errors import InputError
from tools.kernels.arguments import HALF
from tools.screen import output, seconds, status, table


@dataclass(frozen=True)
class Need:
    """A GEMM that a plan's products need, who and how large they are; what was built for it, or why nothing was."""

    gemm: Gemm
    users: list[str] = field(default_factory=list)
    sizes: list[Sizes] = field(default_factory=list)
    entries: tuple[Entry, ...] = ()
    reason: str = ""


def build_command(options: argparse.Namespace) -> int:
    """Exit status 0 when every product has kernels, 1 when one has none."""
    plan = Plan.load(options.plan)
    made: list[Need] = []
    with status("compiling") as say:
        wanted = needs(plan, options.dtype)
        for n, need in enumerate(wanted):
            say(f"compiling {n + 1} of {len(wanted)}: {need.users[0]}")
            made.append(_built(need, options.arch, options.printer, options.every))
    if options.json:
        options.document(_document(made))
    else:
        console = output()
        console.print(_table(f"{plan.model.get('entry', 'the plan')} on {options.arch}", made))
        for line in _said(plan, made):
            console.print(line)
        console.print(f"kept in {build.root()}")
    return int(any(not need.entries for need in made))


def list_command(options: argparse.Namespace) -> int:
    """All that is built, or of it what a plan needs."""
    wanted = {n.gemm.digest: n for n in needs(Plan.load(options.plan), options.dtype)} if options.plan else None
    found: list[Need] = []
    for entry in build.entries(build.root()):
        gemm = entry.kernel.gemm
        if (wanted is None or gemm.digest in wanted) and options.arch in (None, entry.kernel.arch):
            need = wanted[gemm.digest] if wanted else Need(gemm)
            found.append(replace(need, entries=(entry,)))
    if options.json:
        options.document(_document(found))
    else:
        output().print(_table(f"{len(found)} kernels in {build.root()}", found))
    return 0


def tune_command(options: argparse.Namespace) -> int:
    """Time every built kernel at every size of the plan."""
    plan = Plan.load(options.plan)
    if not torch.cuda.is_available():
        raise InputError("kernels tune needs a GPU, and torch sees none here")
    clock, ready = tune.cuda_clock(), build.entries(build.root())
    rows: list[Measured] = []
    with status("timing") as say:
        for need in needs(plan, options.dtype):
            entries = [entry for entry in ready if entry.kernel.gemm == need.gemm]
            for sizes in dict.fromkeys(need.sizes):
                say(f"timing {need.users[0]}, {' x '.join(map(str, sizes))}")
                rows.append(tune.tune(need.gemm, sizes, entries, clock, not options.no_compile))
    tune.database(rows).save(Path(options.output))
    output().print(timings(rows))
    return 0


def needs(plan: Plan, dtype: str | None) -> list[Need]:
    """Each distinct GEMM of the plan's products and their gradients, in bfloat16 where theirs has no tensor cores."""
    found: dict[str, Need] = {}
    for block in plan.blocks:
        for row in block.products:
            half = row.dtype if row.dtype in HALF else HALF[0]
            for role, (gemm, sizes) in zip(ROLES, gemms(row, dtype or half), strict=True):
                need = found.setdefault(gemm.digest, Need(gemm))
                need.users.append(f"{row.module or row.name} {role}")
                need.sizes.append(sizes)
    return list(found.values())


def timings(rows: list[Measured]) -> object:
    """What won at each size, and by how much."""
    cells = [
        [
            f"{row.m} x {row.n} x {row.k}", row.rival, seconds(row.torch_seconds), row.kernel or f"torch: {row.reason}",
            seconds(row.seconds), f"{row.torch_seconds / row.seconds:.2f}x",
        ]
        for row in rows
    ]  # fmt: skip
    columns = ("m x n x k", "fastest of torch", "its time", "chosen", "time", "torch over chosen")
    return table("GEMMs by measurement", columns, cells, words=("fastest of torch", "chosen"))


def _built(need: Need, arch: str, printer: str | None, every: bool) -> Need:
    try:
        found = candidates.built(need.gemm, arch, build.root(), printer, need.sizes[0], every)
    except (FileNotFoundError, ModuleNotFoundError, PackageNotFoundError) as error:
        raise InputError(f"{error}; kernels need nvcc and pip install 'partitioner[cutlass]'") from error
    return replace(need, entries=found.entries, reason="" if found.entries else "; ".join(found.reasons))


def _said(plan: Plan, made: list[Need]) -> Iterator[str]:
    """What a reader must know beside the table."""
    wide = sorted({row.dtype for block in plan.blocks for row in block.products} - set(HALF))
    if wide:
        yield f"the plan's products are in {', '.join(wide)}, which has no tensor cores: built in {made[0].gemm.dtype}"
    for need in made:
        if not need.entries:
            yield f"{need.users[0]}: {need.reason}"


def _table(title: str, rows: list[Need]) -> object:
    columns = ("product", "as it stores", "kernel", "tensor cores", "registers", "compiled in")
    cells = [[*_words(need), *kernel] for need in rows for kernel in _kernels(need)]
    return table(title, columns, cells, words=columns[1:4])


def _words(need: Need) -> list[str]:
    """Who needs it, the ops in order, and how many values are stored where it is more than one."""
    first = _short(need.users[0]) if need.users else f"{need.gemm.kind} {need.gemm.digest[:8]}"
    more = f" and {len(need.users) - 1} more" if len(need.users) > 1 else ""
    stores = f"; {len(need.gemm.stores)} stores" if len(need.gemm.stores) > 1 else ""
    return [first + more, ", ".join(op.op for op in need.gemm.ops) + stores]


def _short(user: str) -> str:
    """The last two parts of a module's name, and the role."""
    module, _, role = user.rpartition(" ")
    return f"{'.'.join(module.split('.')[-2:])} {role}"


def _kernels(need: Need) -> Iterator[list[str]]:
    for entry in need.entries:
        code = entry.manifest.code
        tensor = " ".join(f"{count} {name.split('.F')[0]}" for name, count in code.tensor_core.items())
        yield [entry.manifest.name, tensor, str(code.registers), f"{entry.manifest.seconds:.1f} s"]
    if not need.entries:
        yield ["none", "", "", ""]


def _document(rows: list[Need]) -> str:
    return json.dumps([found for need in rows for found in _plain(need)], indent=1) + "\n"


def _plain(need: Need) -> Iterator[dict[str, object]]:
    found: dict[str, object] = {"digest": need.gemm.digest, "gemm": asdict(need.gemm), "users": need.users}
    for entry in need.entries:
        kernel = {"printer": entry.kernel.printer, "arch": entry.kernel.arch, **asdict(entry.kernel.tiling)}
        yield found | {"kernel": kernel, "manifest": asdict(entry.manifest), "reason": ""}
    if not need.entries:
        yield found | {"kernel": None, "manifest": None, "reason": need.reason}
