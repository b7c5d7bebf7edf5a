"""The arguments of ``partitioner show``."""

from __future__ import annotations

import argparse

from tools.subcommands import Subcommands

EXAMPLES = """examples:
  partitioner show plan.json
  partitioner show plan.json --svg plan.svg --trace step.json --html plan.html
  partitioner show plan.json --block model.layers.0 --png block.png
  partitioner show plan.json --program | less"""


def declare(commands: Subcommands) -> None:
    """Add the command."""
    show = commands.add_parser(
        "show", help="look at a plan", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    show.add_argument("plan", metavar="PLAN")
    show.add_argument("--svg", metavar="FILE", help="draw stages, blocks, layouts and collectives")
    show.add_argument("--png", metavar="FILE", help="the same as a bitmap")
    show.add_argument("--block", metavar="NAME", help="draw this block op by op, or list its ops")
    show.add_argument(
        "--program", action="store_true", help="draw the lowered program, or print it (imports the plan's model)"
    )
    show.add_argument("--trace", metavar="FILE", help="write the step's timeline for Perfetto or chrome://tracing")
    show.add_argument("--html", metavar="FILE", help="write one page that holds it all and needs no network")
    show.add_argument("--ops", action="store_true", help="list every op, not only those that move or multiply")
    show.add_argument("--json", action="store_true", help="print the plan's JSON and nothing else")
    show.set_defaults(action="tools.show.command:show_command")
