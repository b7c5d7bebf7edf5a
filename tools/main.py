"""The ``partitioner`` command: reads arguments, calls one tool, turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import importlib
import sys

import shtab

import partitioner
from partitioner.errors import DoesNotFit, InputError
from tools.calibrate import arguments as calibrate
from tools.compare import arguments as compare
from tools.configs import arguments as configs
from tools.fit import arguments as fit
from tools.generate import arguments as generate
from tools.kernels import arguments as kernels
from tools.plan import arguments as plan
from tools.run import arguments as run
from tools.screen import error_line
from tools.serve import arguments as serve
from tools.show import arguments as show
from tools.streams import document_alone
from tools.validate import arguments as validate
from tools.verify import arguments as verify

EXIT_INPUT, EXIT_MEMORY = 2, 3
ROOMS = (plan, fit, show, compare, verify, validate, run, generate, serve, calibrate, kernels, configs)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """All sub-commands, each declared by its room; what does it is named alone, since importing it takes seconds."""
    top = _Parser(prog="partitioner", description="Automatic parallelization of transformer training.")
    top.add_argument("--version", action="version", version=f"partitioner {partitioner.__version__}")
    shtab.add_argument_to(top, "--print-completion", help="print a completion script for this shell, to be sourced")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for room in ROOMS:
        room.declare(commands)
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
        options = parser().parse_args(words)
        options.words = words
        with document_alone(getattr(options, "json", False), restore=arguments is not None) as options.document:
            module, _, action = options.action.partition(":")
            return int(getattr(importlib.import_module(module), action)(options) or 0)
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
