"""One rank of ``partitioner verify``: every plan of a folder on this world, rank 0 compares with the eager module.

What each rank sends is compared with what the Program alone predicts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from partitioner import Plan
from partitioner.errors import InputError
from runtime.ranks.process_group import finish_ranks, is_first, start_ranks
from runtime.verify.trial import Outcome, prepare, run_plan
from tools.screen import error_line
from tools.verify.subject import Subject, subject_of


def main(folder: Path, count: int) -> None:
    """Load the model once, run every plan, write ``result`` from rank 0."""
    torch.set_num_threads(1)
    given = json.loads((folder / "model").read_text())
    subject = subject_of(given["spec"], given["settings"], given["seq"], given["batch"], given["samples"])
    start_ranks()
    found, remark = _run(subject, [Plan.load(folder / f"{n}.json") for n in range(count)])
    if is_first():
        (folder / "result").write_text(json.dumps({"rows": [_plain(row) for row in found], "remark": remark}))
    finish_ranks()


def _run(subject: Subject, plans: list[Plan]) -> tuple[list[Outcome], str]:
    first = prepare(subject.module, subject.graph, subject.batch)
    precisions = dict.fromkeys(plan.decisions.precision for plan in plans)
    trials = {precision: first.traced_as(subject.traced_in(precision)) for precision in precisions}
    found = [run_plan(trials[plan.decisions.precision], plan) for plan in plans]
    return [row for row in found if row is not None], first.reference.remark if first.reference else ""


def _plain(row: Outcome) -> dict[str, object]:
    apart = row.apart
    return {
        "loss": apart.loss, "gradient": apart.gradient, "norm": apart.norm, "parameter": apart.parameter,
        "worst": apart.worst, "zero": apart.zero, "empty": apart.empty, "limit": row.limit, "first": row.first,
        "unforeseen": row.unforeseen, "real": row.real, "real_error": row.real_error,
    }  # fmt: skip


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except InputError as error:
        error_line(str(error))
        sys.exit(2)
