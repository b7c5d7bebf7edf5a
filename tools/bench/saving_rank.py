"""One rank of ``tools.bench.saving``: trains, saves beside training, and times what the training thread waits."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from runtime import parallelize
from runtime.ranks.process_group import finish_ranks, is_first, start_ranks
from tools.models.load import load


@dataclass(frozen=True)
class Timed:
    """Seconds: of steps beside which nothing is written, of steps beside which a checkpoint is, of the calls of
    ``save``, of which the first makes the memory for the copies, and until a checkpoint is there."""

    steps: list[float]
    beside: list[float]
    saves: list[float]
    written: list[float]
    parameters: int
    bytes: int


def main(folder: Path) -> None:
    """Write ``result`` from rank 0."""
    torch.set_num_threads(1)
    start_ranks()
    job = json.loads((folder / "job").read_text())
    torch.manual_seed(0)
    source = load(job["spec"], job["settings"])
    engine = parallelize(
        source.module, source.batch, global_batch=job["samples"], plan=folder / "plan.json", lr=1e-4
    )
    many = engine.program.micro_batch * engine.program.micro_batches
    batch = {name: t[:1].expand(many, *t.shape[1:]).contiguous() for name, t in source.batch.items()}
    found = Timed([], [], [], [], sum(p.numel() for p in source.module.parameters()), 0)
    engine.step(batch)
    for _ in range(job["saves"]):
        for _ in range(job["between"]):
            found.steps.append(_seconds(lambda: engine.step(batch)))
        began = time.perf_counter()
        found.saves.append(_seconds(lambda: engine.save(folder / "saved", keep=1, wait=False)))
        found.beside.append(_seconds(lambda: engine.step(batch)))
        engine.saved()
        found.written.append(time.perf_counter() - began)
    if is_first():
        (newest,) = (folder / "saved").glob("step-*")
        size = sum(path.stat().st_size for path in newest.iterdir())
        (folder / "result").write_text(json.dumps(asdict(found) | {"bytes": size}))
    finish_ranks()


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(Path(sys.argv[1]))
