"""The arguments of ``partitioner plan`` and ``partitioner clusters``."""

from __future__ import annotations

import argparse

from partitioner.software import frameworks
from tools.models import precision_option
from tools.subcommands import Subcommands

GOALS = LATENCY, THROUGHPUT = "latency", "throughput"  # of plans for answers
EXAMPLES = """examples:
  partitioner plan examples/gpt.py:model --cluster local-cpu --global-batch 16 -o plan.json
  partitioner plan hf:llama --set num_hidden_layers=8 --cluster dgx-h100 --global-batch 64
  partitioner plan examples/gpt.py:model --cluster local-cpu --global-batch 16 --pin tp=2 --pin "blocks.*.mlp=replicate"
  partitioner plan --edit plan.json --pin schedule=1f1b -o other.json"""


def declare(commands: Subcommands) -> None:
    """Add both commands."""
    plan = commands.add_parser(
        "plan",
        help="search the best plan for a model on a cluster",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = "file.py:function, hf:TYPE, hf:config.json or plain:decoder"
    plan.add_argument("model", metavar="MODEL", nargs="?", help=words)
    plan.add_argument("--edit", metavar="PLAN", help="solve a plan file again around its hand edits and more pins")
    plan.add_argument("--cluster", metavar="NAME", help="a preset (see clusters) or a .toml file")
    plan.add_argument("--nodes", type=int, metavar="N", help="default: 1")
    plan.add_argument("--devices", type=int, metavar="N", help="use N devices of one node")
    words = "plan for another framework, or for answers instead of training"
    plan.add_argument("--for", dest="framework", metavar="|".join((*frameworks(), *GOALS)), help=words)
    plan.add_argument("--global-batch", type=int, metavar="B", help="samples a step, or texts at once, of all ranks")
    plan.add_argument("--prompt", type=int, metavar="N", help="tokens of a prompt, for answers; default: 512")
    plan.add_argument("--answer", type=int, metavar="N", help="tokens of an answer; default: 128")
    plan.add_argument("--chunk", type=int, metavar="N", help="tokens of prompts that a call reads; default: 256")
    plan.add_argument(
        "--seq", type=int, metavar="S", help="tokens a sample; default: what an hf: configuration allows, up to 8,192"
    )
    precision_option.declare(plan)
    plan.add_argument("--set", action="append", default=[], nargs="+", metavar="k=v", help="model settings")
    plan.add_argument("--pin", action="append", default=[], metavar="tp=8", help="fix a decision or a layout")
    plan.add_argument("-o", "--output", metavar="FILE", help="write plan.json")
    plan.add_argument("--top", type=int, default=5, metavar="K", help="candidates to list")
    words = "also propose what can't be executed yet (cp, zero-bubble)"
    plan.add_argument("--plan-only", action="store_true", help=words)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON and nothing else")
    plan.set_defaults(action="tools.plan.command:plan_command")
    clusters = commands.add_parser("clusters", help="list the cluster presets", epilog="example: partitioner clusters")
    clusters.add_argument("--why", metavar="NAME", help="each number of a preset, file or framework and its source")
    clusters.add_argument("--json", action="store_true")
    clusters.set_defaults(action="tools.plan.clusters:clusters_command")
