"""The arguments of ``partitioner run``, ``import`` and ``export``."""

from __future__ import annotations

from runtime.data.choices import PACKS
from tools.run.going_on import DEFAULTS
from tools.subcommands import Subcommands

WEIGHTS = (
    (
        "import", "safetensors into a checkpoint that any plan of the model loads",
        "partitioner import plan.json weights/ checkpoints/",
    ),
    (
        "export", "a checkpoint into safetensors that transformers loads",
        "partitioner export plan.json checkpoints/ weights/",
    ),
)  # fmt: skip


def declare(commands: Subcommands) -> None:
    """Add the three commands."""
    run = commands.add_parser(
        "run", help="train a plan", epilog="example: partitioner run plan.json --steps 40 --data corpus.txt"
    )
    run.add_argument("plan", metavar="PLAN")
    run.add_argument("--steps", type=int, required=True, metavar="N", help="in all, those of a checkpoint included")
    words = "a file or folder of text, .jsonl or .parquet; default: Python's standard library"
    run.add_argument("--data", metavar="PATH", help=words)
    run.add_argument("--text-field", metavar="NAME", help=f"of .jsonl and .parquet; {_default('text_field')}")
    run.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json; default: bytes are the tokens")
    run.add_argument("--pack", choices=PACKS, help=f"documents: none attends to another; {_default('pack')}")
    run.add_argument("--lr", type=float, help=_default("lr"))
    run.add_argument("--optimizer", choices=("adamw", "sgd"), help=_default("optimizer"))
    run.add_argument("--clip", type=float, help=f"largest gradient norm; {_default('clip')}")
    run.add_argument("--weight-decay", type=float, metavar="W", help="of matrices alone; default: torch's, of all")
    run.add_argument("--rate", action="append", dest="rates", metavar="NAMES=X", help='factor of some: "embed*=0.5"')
    run.add_argument("--warmup", type=int, metavar="N", help="steps of linear warm-up before a cosine down to 0")
    run.add_argument("--weights", metavar="DIR", help="initial weights, Hugging Face safetensors")
    run.add_argument("--checkpoint", metavar="DIR", help="save there when done, go on from there when it holds one")
    run.add_argument("--save-every", type=int, metavar="N", help="save also every N steps")
    run.add_argument("--eval-every", type=int, metavar="N", help="evaluate also every N steps, on the text's last part")
    run.add_argument("--keep", type=int, metavar="N", help="how many checkpoints stay, the newest; default: all")
    run.add_argument("--skip-nonfinite", action="store_true", help="go on past a loss that is no number, counted")
    run.add_argument("--ranks", type=int, metavar="N", help="start so many on this machine, with --elastic")
    run.add_argument("--elastic", action="store_true", help="plan anew where other ranks came than the plan is for")
    run.add_argument("--slurm", metavar="FILE", help="write the batch script of this command, and start nothing")
    run.add_argument("--patience", type=float, default=1.0, metavar="X", help="factor of all limits on waiting")
    run.add_argument("--report", metavar="FILE", help="write report.json")
    run.add_argument("--log", metavar="FILE.jsonl", help="append a line of JSON for each step, save and warning")
    run.add_argument("--tensorboard", metavar="DIR", help="write curves there (needs the package tensorboard)")
    run.add_argument("--trace", metavar="FILE", help="write chosen steps for Perfetto, the predicted one beside them")
    run.add_argument("--trace-steps", metavar="A:B", help="which, both included, for --trace")
    run.add_argument("--json", action="store_true", help="print the report's JSON and nothing else")
    run.set_defaults(action="tools.run.command:run_command")
    for name, words, example in WEIGHTS:
        command = commands.add_parser(name, help=words, epilog=f"example: {example}")
        command.add_argument("plan", metavar="PLAN")
        command.add_argument("source", metavar="FROM", help="a folder")
        command.add_argument("target", metavar="TO", help="a folder")
        command.set_defaults(action=f"tools.run.weights:{name}_command")


def _default(name: str) -> str:
    return f"default: that of the checkpoint, else {DEFAULTS[name]}"
