"""The arguments of ``partitioner verify``."""

from __future__ import annotations

from tools.models import precision_option
from tools.subcommands import Subcommands


def declare(commands: Subcommands) -> None:
    """Add the command."""
    verify = commands.add_parser(
        "verify",
        help="compare plans with the plain model on local ranks",
        epilog="example: partitioner verify hf:llama --ranks 4",
    )
    verify.add_argument("what", metavar="MODEL|PLAN", help="file.py:function, hf:TYPE, or a plan.json")
    verify.add_argument("--ranks", type=int, default=2, metavar="N")
    verify.add_argument("--set", action="append", default=[], nargs="+", metavar="k=v")
    verify.add_argument("--seq", type=int, metavar="S")
    verify.add_argument("--random", type=int, metavar="N", help="N plans of a MODEL drawn at random, in its own types")
    verify.add_argument("--seed", type=int, default=0, metavar="S", help="of --random")
    precision_option.declare(verify, "of a MODEL: of all its families; default: its own data types")
    verify.add_argument("--json", action="store_true")
    verify.add_argument("--dry-run", action="store_true", help="all ranks of a PLAN here, without values or machines")
    verify.add_argument("--backend", choices=("nccl", "gloo"), default="nccl", help="whose ways a dry run follows")
    verify.add_argument("--every", action="store_true", help="a dry run executes all micro-batches, slowly")
    verify.set_defaults(action="tools.verify.command:verify_command")
