"""The arguments of ``partitioner from``, ``partitioner to`` and ``partitioner lint``."""

from __future__ import annotations

import argparse

from tools.subcommands import Subcommands

READ = ("megatron", "bridge", "torchtitan", "deepspeed", "fsdp", "nanotron")
WRITTEN = (*READ, "transformers")
FROM_EXAMPLES = """examples:
  partitioner from megatron train.sh --cluster dgx-h100 --nodes 16 --set vocab=51200 -o plan.json
  partitioner from torchtitan llama3_8b.toml --model hf:llama --cluster dgx-h100 -o plan.json
  partitioner from deepspeed zero3.json --model hf:llama --seq 4096 --cluster dgx-a100 --global-batch 64"""
TO_EXAMPLES = """examples:
  partitioner to megatron plan.json -o flags.txt
  partitioner to transformers plan.json              its tp_plan, as from_pretrained takes it"""
LINT_EXAMPLES = """examples:
  partitioner lint train.sh --cluster dgx-h100 --nodes 16
  partitioner lint plan.json; exit status 1 where something is found"""


def declare(commands: Subcommands) -> None:
    """Add the three commands."""
    _from(commands)
    command = commands.add_parser(
        "to", help="write a plan as another framework's configuration", epilog=TO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("framework", choices=WRITTEN, metavar="FRAMEWORK", help=f"one of {', '.join(WRITTEN)}")
    command.add_argument("plan", metavar="PLAN")
    command.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    command.set_defaults(action="tools.configs.to_command:to_command")
    _lint(commands)


def _from(commands: Subcommands) -> None:
    command = commands.add_parser(
        "from", help="read another framework's configuration as a plan", epilog=FROM_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("framework", choices=READ, metavar="FRAMEWORK", help=f"one of {', '.join(READ)}")
    command.add_argument("file", metavar="FILE", help="its configuration")
    _place(command)
    command.add_argument("-o", "--output", metavar="FILE", help="write plan.json")
    command.set_defaults(action="tools.configs.from_command:from_command")


def _lint(commands: Subcommands) -> None:
    command = commands.add_parser(
        "lint", help="what can't work, or won't fit, in a configuration or a plan", epilog=LINT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("file", metavar="FILE", help="a configuration, or a plan of this project")
    command.add_argument("--framework", choices=READ, metavar="FRAMEWORK", help="default: told by the file's keys")
    _place(command)
    command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    command.set_defaults(action="tools.configs.lint_command:lint_command")


def _place(command: argparse.ArgumentParser) -> None:
    """Of what model, on what cluster, for what the file does not say."""
    command.add_argument(
        "--model", metavar="MODEL",
        help="file.py:function, hf:TYPE or hf:config.json; default: a plain decoder of the sizes in the file",
    )  # fmt: skip
    command.add_argument("--cluster", metavar="NAME", help="a preset (see clusters) or a .toml file")
    command.add_argument("--nodes", type=int, metavar="N", help="default: as many as the file has devices for, else 1")
    command.add_argument("--devices", type=int, metavar="N", help="use N devices of one node")
    command.add_argument("--global-batch", type=int, metavar="B", help="samples a step, where the file does not say")
    command.add_argument("--seq", type=int, metavar="S", help="tokens a sample, where the file does not say")
    command.add_argument("--set", action="append", default=[], nargs="+", metavar="k=v", help="model settings")
