"""The arguments of ``partitioner validate``."""

from __future__ import annotations

from tools.subcommands import Subcommands


def declare(commands: Subcommands) -> None:
    """Add the command."""
    validate = commands.add_parser(
        "validate",
        help="predict published training runs, or measured kernels, and compare",
        epilog="example: partitioner validate runs.csv --rows",
    )
    validate.add_argument("runs", nargs="?", metavar="RUNS.csv", help="a run a row; default: the table of the package")
    words = "measured kernels instead: gemm, attention_forward, nccl as CSV, a kernel a row"
    validate.add_argument("--kernels", metavar="FOLDER", help=words)
    validate.add_argument("--rows", action="store_true", help="list every row")
    validate.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    validate.set_defaults(action="tools.validate.command:validate_command")
