"""The arguments of ``partitioner calibrate``."""

from __future__ import annotations

import argparse

from tools.subcommands import Subcommands

EXAMPLES = """examples:
  partitioner calibrate -o here.toml                             measure this machine, all its ranks at work
  torchrun --nnodes 2 --nproc-per-node 8 -m tools.main calibrate -o here.toml
  partitioner calibrate --from report.json -o corrected.toml     correct the plan's cluster by what a run took"""


def declare(commands: Subcommands) -> None:
    """Add the command."""
    calibrate = commands.add_parser(
        "calibrate",
        help="write a cluster file from measurements of this machine",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    calibrate.add_argument("-o", "--output", required=True, metavar="CLUSTER.toml")
    calibrate.add_argument("--ranks", type=int, metavar="N", help="local processes: default 4, or one for each GPU")
    calibrate.add_argument("--name", metavar="NAME", help="the cluster's name; default: the file's")
    calibrate.add_argument("--from", dest="report", metavar="REPORT", help="correct the cluster of a run's report")
    calibrate.add_argument("--quick", action="store_true", help="fewer sizes and rounds: some seconds, rough figures")
    calibrate.add_argument("--json", action="store_true", help="print the cluster and its samples as JSON and no table")
    calibrate.set_defaults(action="tools.calibrate.command:calibrate_command")
