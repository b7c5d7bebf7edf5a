"""The arguments of ``partitioner compare`` and ``partitioner diff``."""

from __future__ import annotations

import argparse

from tools.subcommands import Subcommands

BASELINES = ("megatron", "fsdp", "ddp")  # rules of thumb: baselines.py
DIFF_EXAMPLE = "example: partitioner diff before.json after.json; exit status 1 where they differ"
EXAMPLES = """examples:
  partitioner compare a.json b.json
  partitioner compare plan.json report.json                a plan and a run of it: which parts were off
  partitioner compare plan.json --baseline megatron fsdp   what an expert would have set by rules of thumb
  partitioner compare plan.json --why-not tp=4             the best plan with that pin, and what it loses
  partitioner compare a.json b.json --sensitivity          break-even points of bandwidth, memory and price
  partitioner compare a.json b.json --html compare.html"""


def declare(commands: Subcommands) -> None:
    """Add both commands."""
    command = commands.add_parser(
        "compare", help="compare plans and runs by cost", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("files", nargs="+", metavar="PLAN|REPORT")
    command.add_argument(
        "--baseline", nargs="+", choices=BASELINES, default=[], metavar="|".join(BASELINES),
        help="plans by rules of thumb for the first file's model and cluster (imports its model)",
    )  # fmt: skip
    command.add_argument(
        "--why-not", action="append", default=[], metavar="tp=4",
        help="the best plan with this pin for the first file's model (imports it)",
    )  # fmt: skip
    command.add_argument(
        "--sensitivity", action="store_true",
        help="how the ranking changes with bandwidth, memory and price (imports the models)",
    )  # fmt: skip
    command.add_argument("--html", metavar="FILE", help="write one page that needs no network")
    command.add_argument("--markdown", action="store_true", help="print a Markdown table")
    command.add_argument("--csv", action="store_true", help="print comma-separated values, seconds and bytes")
    command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    command.set_defaults(action="tools.compare.command:compare_command")
    command = commands.add_parser("diff", help="what changed from one plan to another", epilog=DIFF_EXAMPLE)
    command.add_argument("before", metavar="PLAN")
    command.add_argument("after", metavar="PLAN")
    command.set_defaults(action="tools.compare.diff:diff_command")
