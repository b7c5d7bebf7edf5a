"""The ``partitioner`` command: reads arguments, calls one tool, turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import sys

import shtab

from partitioner.errors import DoesNotFit, InputError
from tools import calibrate, compare, diff, kernels, planning, run, show, validate, verify, weights
from tools.screen import error_line

EXIT_INPUT, EXIT_MEMORY = 2, 3
COMMANDS = (planning, show, compare, diff, verify, validate, run, weights, calibrate, kernels)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """All sub-commands, each declared by its own module."""
    top = _Parser(prog="partitioner", description="Automatic parallelization of transformer training.")
    shtab.add_argument_to(top, "--print-completion", help="print a completion script for this shell, to be sourced")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for module in COMMANDS:
        module.declare(commands)
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
    """Exit status: 0 done, 1 something differs or failed, 2 bad input, 3 no plan fits in memory."""
    try:
        options = parser().parse_args(arguments)
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
