"""``partitioner kernels``: compile the CUTLASS kernels that a plan's products need, and list what is built. No GPU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError

from cutlass_ops import build, candidates, layer
from cutlass_ops.build import BuildError, Entry
from cutlass_ops.kernel import ARCHITECTURES
from cutlass_ops.spec import Gemm
from partitioner import Plan
from partitioner.derived import ProductRow
from partitioner.errors import InputError
from tools.screen import output, status, table

HALF = ("bfloat16", "float16")
ROLES = ("forward", "dgrad", "wgrad")


@dataclass(frozen=True)
class Need:
    """A GEMM that a plan's products need, who they are, and what was built for it, or why nothing was."""

    gemm: Gemm
    users: list[str] = field(default_factory=list)
    entry: Entry | None = None
    reason: str = ""


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    kernels = commands.add_parser(
        "kernels", help="compile a plan's kernels, list them", epilog="example: partitioner kernels build plan.json"
    )
    verbs = kernels.add_subparsers(dest="verb", required=True, metavar="build|list")
    for verb, text in (("build", "compile what a plan needs"), ("list", "what is built")):
        made = verbs.add_parser(verb, help=text)
        made.add_argument("plan", metavar="PLAN", nargs="?" if verb == "list" else None)
        made.add_argument("--arch", choices=ARCHITECTURES, default="sm_90a" if verb == "build" else None)
        made.add_argument("--dtype", choices=HALF, help="instead of the plan's, which may have no tensor cores")
        made.add_argument("--json", action="store_true")
        if verb == "build":
            made.add_argument("--printer", choices=tuple(build.PRINTERS), help="default: cute from sm_90, else cpp")
        made.set_defaults(action=build_command if verb == "build" else list_command)


def build_command(options: argparse.Namespace) -> int:
    """Exit status 0 when every product has kernels, 1 when one has none."""
    plan = Plan.load(options.plan)
    made: list[Need] = []
    with status("compiling") as say:
        wanted = needs(plan, options.dtype)
        for n, need in enumerate(wanted):
            say(f"compiling {n + 1} of {len(wanted)}: {need.users[0]}")  # type: ignore[operator]
            made.append(_built(need, options.arch, options.printer))
    if options.json:
        sys.stdout.write(json.dumps([_plain(need) for need in made], indent=1) + "\n")
        return int(any(need.entry is None for need in made))
    console = output()
    console.print(_table(f"{plan.model.get('entry', 'the plan')} on {options.arch}", made))
    for line in _said(plan, made):
        console.print(line)
    console.print(f"kept in {build.root()}")
    return int(any(need.entry is None for need in made))


def list_command(options: argparse.Namespace) -> int:
    """All that is built, or of it what a plan needs."""
    wanted = {n.gemm.digest: n for n in needs(Plan.load(options.plan), options.dtype)} if options.plan else None
    found: list[Need] = []
    for entry in build.entries(build.root()):
        gemm = entry.kernel.gemm
        if (wanted is None or gemm.digest in wanted) and options.arch in (None, entry.kernel.arch):
            found.append(Need(gemm, wanted[gemm.digest].users if wanted else [], entry))
    if options.json:
        sys.stdout.write(json.dumps([_plain(need) for need in found], indent=1) + "\n")
        return 0
    output().print(_table(f"{len(found)} kernels in {build.root()}", found))
    return 0


def needs(plan: Plan, dtype: str | None) -> list[Need]:
    """Each distinct GEMM of the plan's products and their gradients, in bfloat16 where theirs has no tensor cores."""
    found: dict[str, Need] = {}
    for block in plan.blocks:
        for row in block.products:
            for role, gemm in zip(ROLES, gemms(row, dtype or _half(row.dtype)), strict=True):
                need = found.setdefault(gemm.digest, Need(gemm))
                need.users.append(f"{row.module or row.name} {role}")
    return list(found.values())


def gemms(row: ProductRow, dtype: str) -> tuple[Gemm, Gemm, Gemm]:
    """Forward, dgrad and wgrad of a product."""
    op = layer.layer(row.line, row.inner, row.transposed, dtype, ("", "", ""))
    return op.forward, layer.dgrad(op), layer.wgrad(op)


def _half(dtype: str) -> str:
    return dtype if dtype in HALF else HALF[0]


def _built(need: Need, arch: str, printer: str | None) -> Need:
    if not candidates.candidates(need.gemm, arch, printer):
        return Need(need.gemm, need.users, None, candidates.refusal(need.gemm, arch, printer))
    try:
        entry = candidates.without_spills(need.gemm, arch, build.root(), printer)
    except (FileNotFoundError, ModuleNotFoundError, PackageNotFoundError) as error:
        raise InputError(f"{error}; kernels need nvcc and pip install 'partitioner[cutlass]'") from error
    except BuildError as error:
        return Need(need.gemm, need.users, None, str(error))
    return Need(need.gemm, need.users, entry, "" if entry else "every tile's epilogue spills registers")


def _said(plan: Plan, made: list[Need]) -> Iterator[str]:
    """What a reader must know beside the table."""
    wide = sorted({row.dtype for block in plan.blocks for row in block.products} - set(HALF))
    if wide:
        yield f"the plan's products are in {', '.join(wide)}, which has no tensor cores: built in {made[0].gemm.dtype}"
    for need in made:
        if need.entry is None:
            yield f"{need.users[0]}: {need.reason}"


def _table(title: str, rows: list[Need]) -> object:
    cells: list[list[str]] = []
    for need in rows:
        entry = need.entry
        user = need.users[0] + (f" and {len(need.users) - 1} more" if len(need.users) > 1 else "") if need.users else ""
        shown = [user, _epilogue(need.gemm)]
        if entry is None:
            cells.append([*shown, "none", "", "", ""])
            continue
        code = entry.manifest.code
        tensor = " ".join(f"{count} {name.split('.F')[0]}" for name, count in code.tensor_core.items())
        cells.append([*shown, entry.manifest.name, tensor, str(code.registers), f"{entry.manifest.seconds:.1f} s"])
    columns = ("product", "as it stores", "kernel", "tensor cores", "registers", "compiled in")
    return table(title, columns, cells, words=columns[1:4])


def _epilogue(gemm: Gemm) -> str:
    """The ops in order, and how many values are stored where it is more than one."""
    words = [op.op for op in gemm.ops] or ["store"]
    return ", ".join(words) + (f"; {len(gemm.stores)} stores" if len(gemm.stores) > 1 else "")


def _plain(need: Need) -> dict[str, object]:
    found: dict[str, object] = {"digest": need.gemm.digest, "gemm": asdict(need.gemm), "users": need.users}
    if need.entry is None:
        return found | {"kernel": None, "manifest": None, "reason": need.reason}
    kernel = need.entry.kernel
    words = {"printer": kernel.printer, "arch": kernel.arch, **asdict(kernel.tiling)}
    return found | {"kernel": words, "manifest": asdict(need.entry.manifest), "reason": ""}
