"""The arguments of ``partitioner serve``."""

from __future__ import annotations

import argparse

from tools.generate.arguments import declare_model
from tools.subcommands import Subcommands

EXAMPLES = """examples:
  partitioner serve plan.json --checkpoint checkpoints
  partitioner serve hf:weights/config.json --weights weights --tokenizer weights --ranks 2 --rows 16 --length 4096
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "def main("}'"""


def declare(commands: Subcommands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "serve", help="answer over HTTP, as OpenAI's API does", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("target", metavar="PLAN|MODEL", help="a plan of it, or the model")
    declare_model(command)
    here = "where it listens; default: 127.0.0.1, this machine alone"
    command.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=here)
    command.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000; 0: any that is free")
    command.add_argument("--name", metavar="NAME", help="of the model, for clients; default: the file's")
    command.add_argument("--length", type=int, default=1024, metavar="L", help="tokens of prompt and answer; 1024")
    command.add_argument("--max-queue", type=int, default=64, metavar="Q", help="texts that wait for a row; 64")
    command.add_argument("--timeout", type=float, default=300.0, metavar="S", help="of a request; default: 300")
    command.add_argument("--grace", type=float, default=30.0, metavar="S", help="for answers at the end; default: 30")
    unread = "pieces that a stream's client may be behind; default: 1024"
    command.add_argument("--max-unread", type=int, default=1024, metavar="N", help=unread)
    command.set_defaults(action="tools.serve.command:serve_command")
