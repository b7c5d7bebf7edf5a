"""Plans to look at: ``python -m tools.bench.gallery docs/gallery`` writes cards, drawings and pages.

The pages (``.html``) hold a copy of the charting library each and are not kept in git.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from partitioner import Plan
from partitioner.whole_files import write_whole
from tools.figures.card import summary
from tools.main import main as partitioner
from tools.screen import written
from tools.show.drawing import drawn, plan_graph
from tools.show.html_page import page

WIDTH = 110


@dataclass(frozen=True)
class Piece:
    """A plan of the gallery: its file's name, what it is, and the arguments of ``partitioner plan``."""

    name: str
    title: str
    arguments: tuple[str, ...]


PIECES = (
    Piece(
        "gpt-4-cpus", "examples/gpt.py on 4 CPU ranks, two stages of two tensor-parallel ranks",
        ("examples/gpt.py:model", "--cluster", "local-cpu", "--global-batch", "16", "--pin", "tp=2", "--pin", "pp=2"),
    ),
    Piece(
        "llama-3-8b-64-h100", "Llama 3.1 8B on 64 H100",
        ("hf:examples/configs/llama-3.1-8b.json", "--cluster", "dgx-h100", "--nodes", "8",
         "--global-batch", "512", "--seq", "4096"),
    ),
    Piece(
        "gpt3-175b-1024-a100", "GPT-3 175B on 1,024 A100",
        ("hf:examples/configs/gpt3-175b.json", "--cluster", "dgx-a100", "--nodes", "128",
         "--global-batch", "1536"),
    ),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Plan, draw and write all of them; run it in the repository's root."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    plans: list[Plan] = []
    for piece in PIECES:
        path = folder / f"{piece.name}.json"
        if partitioner(["plan", *piece.arguments, "--json", "-o", str(path)]):
            return 1
        plan = Plan.load(path)
        picture = str(folder / f"{piece.name}.svg")
        write_whole(picture, drawn(plan_graph(plan), picture))
        written(str(folder / f"{piece.name}.html"), page(plan))
        plans.append(plan)
    written(str(folder / "README.md"), "\n".join(_readme(plans)))
    return 0


def _readme(plans: list[Plan]) -> Iterable[str]:
    yield "# Gallery\n"
    yield "`make gallery` plans these, draws them, and writes a page of each (`.html`, one file, no network) here.\n"
    for piece, plan in zip(PIECES, plans, strict=True):
        yield f"## {piece.title}\n\n    partitioner plan {' '.join(piece.arguments)}\n"
        yield f"```\n{_card(plan)}```\n"
        yield f"![{piece.title}]({piece.name}.svg)\n"


def _card(plan: Plan) -> str:
    console = Console(width=WIDTH, record=True, file=sys.stderr, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(summary(plan))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
