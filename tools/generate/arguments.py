"""The arguments of ``partitioner generate``."""

from __future__ import annotations

import argparse

from tools.models import precision_option
from tools.subcommands import Subcommands

EXAMPLES = """examples:
  partitioner generate plan.json --checkpoint checkpoints --prompt "def main(" --temperature 0.8
  partitioner generate hf:weights/config.json --weights weights --tokenizer weights --chat --prompt "Who are you?"
  partitioner generate plan.json --checkpoint checkpoints --prompts prompts.txt --json"""


def declare(commands: Subcommands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "generate", help="continue texts with a trained model", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("target", metavar="PLAN|MODEL", help="a plan of it, or the model")
    declare_model(command)
    command.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    command.add_argument("--prompts", metavar="FILE", help="one a line, or a .jsonl whose lines have a prompt")
    command.add_argument("--chat", action="store_true", help="prompts are what a user says, by the chat template")
    command.add_argument("--system", metavar="TEXT", help="what is said before, with --chat")
    command.add_argument("--no-cache", action="store_true", help="make every token by all of its text; slow")
    command.add_argument("--json", action="store_true", help="print the answers' JSON and nothing else")
    declare_sampling(command)
    command.set_defaults(action="tools.generate.command:generate_command")


def declare_model(command: argparse.ArgumentParser) -> None:
    """What answers, and on what."""
    source = command.add_mutually_exclusive_group()
    source.add_argument("--weights", metavar="DIR", help="Hugging Face safetensors")
    source.add_argument("--checkpoint", metavar="DIR", help="of a run under any plan")
    command.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or its folder; default: bytes")
    command.add_argument("--ranks", type=int, metavar="N", help="of a MODEL: on so many ranks; default: 1")
    command.add_argument("--cluster", metavar="NAME", help="of a MODEL: planned for; default: local-cpu")
    command.add_argument("--pin", action="append", default=[], metavar="tp=2", help="of a MODEL: fix a decision")
    command.add_argument("--set", action="append", default=[], nargs="+", metavar="k=v", help="settings of a MODEL")
    precision_option.declare(command)
    command.add_argument("--rows", type=int, default=8, metavar="N", help="texts at once of a data rank; default: 8")
    command.add_argument("--chunk", type=int, default=64, metavar="N", help="tokens of prompts a call; default: 64")
    command.add_argument("--patience", type=float, default=1.0, metavar="X", help="factor of all limits on waiting")


def declare_sampling(command: argparse.ArgumentParser) -> None:
    """How tokens are chosen."""
    command.add_argument("--max-tokens", type=int, default=128, metavar="N", help="new ones at the most; default: 128")
    words = "0, the default, takes the likeliest token"
    command.add_argument("--temperature", type=float, default=0.0, metavar="T", help=words)
    command.add_argument("--top-k", type=int, default=0, metavar="K", help="draw of so many likeliest; default: all")
    command.add_argument("--top-p", type=float, default=1.0, metavar="P", help="of those that have this share")
    command.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="default: 1, none")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="the same one gives the same texts")
    command.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends an answer; several may be")
