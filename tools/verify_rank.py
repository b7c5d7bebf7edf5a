"""One rank of ``partitioner verify``: every plan of a folder on this world, rank 0 compares with one process.

What each rank sends is compared with what the Program alone predicts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from partitioner import Graph, Plan, lower, trace
from partitioner.errors import InputError
from partitioner.promote import promote
from runtime.diverge import First, explain
from runtime.engine import Engine
from runtime.groups import Groups
from runtime.parity import CLIP, LR, STEPS, Difference, difference, steps_under, unforeseen
from runtime.reference import Steps, train
from runtime.world import finish_ranks, is_first, start_ranks
from tools.models import load
from tools.screen import error_line


def main(folder: Path, count: int) -> None:
    """Load the model once, run every plan, write ``result`` from rank 0."""
    torch.set_num_threads(1)
    model = json.loads((folder / "model").read_text())
    source = load(model["spec"], model["settings"], seq=model["seq"], batch=model["batch"])
    graph = promote(trace(source.module, source.batch))
    own = dict(source.module.named_parameters(remove_duplicate=False))
    start = {n: own[n].detach().to(graph.parameters[n].dtype) for n in graph.parameters}
    batch = {n: t.double() if t.is_floating_point() else t for n, t in source.batch.items()}
    start_ranks()
    wanted = train(graph, start, batch, STEPS, CLIP, LR) if is_first() else None
    rows = [_compare(folder / f"{n}.json", graph, start, batch, wanted) for n in range(count)]
    if is_first():
        (folder / "result").write_text(json.dumps([_plain(*row) for row in rows if row]))
    finish_ranks()


def _compare(
    path: Path, graph: Graph, start: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], wanted: Steps | None
) -> tuple[Difference, First | None, str] | None:
    program = lower(graph, Plan.load(path))
    places: list[Groups] = []

    def listen(engine: Engine) -> None:
        engine.groups.log.keep = True
        places.append(engine.groups)

    found = steps_under(program, start, batch, listen)
    strange = unforeseen(program, places[0])
    apart = difference(found, wanted) if wanted is not None else None
    first = explain(program, graph, start, batch, apart)
    return (apart, first, strange) if apart is not None else None


def _plain(row: Difference, first: First | None, strange: str) -> dict[str, object]:
    return {
        "loss": row.loss, "gradient": row.gradient, "norm": row.norm, "parameter": row.parameter, "worst": row.worst,
        "zero": row.zero, "first": str(first or ""), "unforeseen": strange,
    }  # fmt: skip


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except InputError as error:
        error_line(str(error))
        sys.exit(2)
