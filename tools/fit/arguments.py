"""The arguments of ``partitioner fit``."""

from __future__ import annotations

import argparse

from partitioner.software import frameworks
from tools.models import precision_option
from tools.subcommands import Subcommands

FREE = 0.1  # of what tensors can fill, what the comfortable plan leaves
EXAMPLES = """examples:
  partitioner fit hf:examples/configs/llama-3.1-8b.json --seq 8192 --cluster dgx-h100
  partitioner fit examples/gpt.py:model --cluster local-cpu --devices 2 --pin zero=0"""


def declare(commands: Subcommands) -> None:
    """Add the command."""
    fit = commands.add_parser(
        "fit",
        help="on how many devices at least a model trains, and how",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fit.add_argument("model", metavar="MODEL", help="file.py:function, hf:TYPE or hf:config.json")
    fit.add_argument("--cluster", metavar="NAME", required=True, help="a preset (see clusters) or a .toml file")
    fit.add_argument("--devices", type=int, metavar="N", help="whether it fits on N: a part of a node, or whole nodes")
    fit.add_argument("--nodes", type=int, metavar="N", help="whether it fits on N whole nodes")
    fit.add_argument("--up-to", type=int, metavar="N", help="after the least number also look at more, up to N devices")
    fit.add_argument("--for", dest="framework", metavar="|".join(frameworks()), help="plan for another framework")
    fit.add_argument(
        "--global-batch", type=int, metavar="B", help="samples a step, all ranks together; default: some a device"
    )
    fit.add_argument(
        "--seq", type=int, metavar="S", help="tokens a sample; default: what an hf: configuration allows, up to 8,192"
    )
    precision_option.declare(fit)
    fit.add_argument("--set", action="append", default=[], nargs="+", metavar="k=v", help="model settings")
    fit.add_argument("--pin", action="append", default=[], metavar="tp=8", help="fix a decision or a layout")
    words = f"of the memory, what the comfortable plan leaves free; default: {FREE:g}"
    fit.add_argument("--free", type=float, default=FREE, metavar="SHARE", help=words)
    fit.add_argument("-o", "--output", metavar="FILE", help="write the comfortable plan")
    fit.add_argument("--plan-only", action="store_true", help="also plans that can't be executed yet")
    fit.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    fit.set_defaults(action="tools.fit.command:fit_command")
