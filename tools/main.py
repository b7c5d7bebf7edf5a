"""The ``partitioner`` command: reads arguments, calls one tool, turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import shtab

from partitioner.errors import DoesNotFit, InputError
from tools.screen import error_line
from tools.streams import document_alone

EXIT_INPUT, EXIT_MEMORY = 2, 3
COMMANDS = {  # and the modules of tools that declare them; one that is asked for is imported alone
    "plan": "plan.command", "clusters": "plan.command", "show": "show.command", "compare": "compare.command",
    "diff": "compare.diff", "verify": "verify.command", "validate": "validate.command", "run": "run.command",
    "import": "run.weights", "export": "run.weights", "calibrate": "calibrate.command", "kernels": "kernels.command",
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message} (see {self.prog} --help)")


def parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """All sub-commands, each declared by its own module; only that which ``words`` start with, where they do."""
    top = _Parser(prog="partitioner", description="Automatic parallelization of transformer training.")
    shtab.add_argument_to(top, "--print-completion", help="print a completion script for this shell, to be sourced")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    asked = [COMMANDS[word] for word in words[:1] if word in COMMANDS]
    for module in asked or dict.fromkeys(COMMANDS.values()):
        importlib.import_module(f"tools.{module}").declare(commands)
    for command in dict.fromkeys(commands.choices.values()):
        _complete_files(command)
    return top


def _complete_files(command: argparse.ArgumentParser) -> None:
    """Let a shell offer files where an argument names one."""
    for action in command._actions:
        words = action.metavar if isinstance(action.metavar, str) else ""
        if any(word in words for word in ("FILE", "PLAN", "REPORT", "PATH", "DIR", ".toml", ".csv")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 something differs or failed, 2 bad input, 3 no plan fits in memory.

    With --json standard output is the command's document alone, which it gives to ``options.document``.
    """
    try:
        words = sys.argv[1:] if arguments is None else arguments
        options = parser(words).parse_args(words)
        with document_alone(getattr(options, "json", False), restore=arguments is not None) as options.document:
            return int(options.action(options) or 0)
    except InputError as error:
        error_line(str(error))
        return EXIT_INPUT
    except DoesNotFit as error:
        error_line(str(error))
        return EXIT_MEMORY
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        error_line("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
