"""The arguments of ``partitioner kernels``."""

from __future__ import annotations

from cutlass_ops.spec.targets import ARCHITECTURES, PRINTERS
from tools.subcommands import Subcommands

HALF = ("bfloat16", "float16")


def declare(commands: Subcommands) -> None:
    """Add the command and its verbs."""
    kernels = commands.add_parser(
        "kernels", help="compile a plan's kernels, list them", epilog="example: partitioner kernels build plan.json"
    )
    verbs = kernels.add_subparsers(dest="verb", required=True, metavar="build|list|tune")
    compile_ = verbs.add_parser("build", help="compile what a plan needs")
    listing = verbs.add_parser("list", help="what is built")
    timing = verbs.add_parser("tune", help="time what is built on this machine's GPU, against torch")
    for verb in (compile_, listing, timing):
        verb.add_argument("plan", metavar="PLAN", nargs="?" if verb is listing else None)
        verb.add_argument("--dtype", choices=HALF, help="instead of the plan's, which may have no tensor cores")
    for verb in (compile_, listing):
        verb.add_argument("--arch", choices=ARCHITECTURES, default="sm_90a" if verb is compile_ else None)
        verb.add_argument("--json", action="store_true")
    compile_.add_argument("--printer", choices=PRINTERS, help="default: cute from sm_90, else cpp")
    compile_.add_argument("--every", action="store_true", help="all tiles, for tune to choose from")
    timing.add_argument("-o", "--output", metavar="FILE", required=True, help="the database to write")
    timing.add_argument("--no-compile", action="store_true", help="leave torch.compile out of the rivals")
    compile_.set_defaults(action="tools.kernels.command:build_command")
    listing.set_defaults(action="tools.kernels.command:list_command")
    timing.set_defaults(action="tools.kernels.command:tune_command")
