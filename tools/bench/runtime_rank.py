"""One rank of ``tools.bench.runtime``: trains the GPT of the hand-written file under a plan and times each step."""

from __future__ import annotations

import json
import statistics
import sys
from argparse import Namespace
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from partitioner import Plan, lower, trace
from partitioner.sharding.mesh_axes import DP
from runtime.measure.step_timing import timed
from runtime.ranks.process_group import finish_ranks, start_ranks
from runtime.state.parameters import gather
from runtime.train.engine import Engine
from runtime.train.parallelize import engine

FLOOR = 1e-2  # of the median update: a bias without a true gradient moves by rounding alone


@dataclass(frozen=True)
class Job:
    """What is timed: the file, its sizes, the plan and where the reference updates lie."""

    native: str
    sizes: dict[str, int]
    plan: str
    reference: str
    warmup: int
    steps: int
    lr: float
    output: str

    @staticmethod
    def load(path: Path) -> Job:
        """Read a job file."""
        return Job(**json.loads(path.read_text()))


class WithLoss(nn.Module):
    """The file's GPT and its loss as one module."""

    def __init__(self, native: ModuleType, sizes: dict[str, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gpt, self.loss = native.GPT(Namespace(**sizes)), native.loss_fn

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.loss(self.gpt(x), y)


def native_module(path: str) -> ModuleType:
    """The hand-written file as a module."""
    spec = spec_from_file_location("native", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batches(sizes: dict[str, int]) -> list[dict[str, torch.Tensor]]:
    """The two global batches that the hand-written file draws."""
    generator = torch.Generator().manual_seed(1)
    shape = (sizes["batch"], sizes["seq"])
    draw = [torch.randint(sizes["vocab"], shape, generator=generator) for _ in range(4)]
    return [{"x": draw[0], "y": draw[1]}, {"x": draw[2], "y": draw[3]}]


def main(job: Job) -> None:
    """Train, time, compare the updates, write the result from rank 0."""
    torch.set_num_threads(1)
    native = native_module(job.native)
    model, data = WithLoss(native, job.sizes), batches(job.sizes)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    plan = Plan.load(job.plan)
    program = lower(trace(model, data[0], compare=False, precision=plan.decisions.precision), plan)
    start_ranks()
    options = {"lr": job.lr, **getattr(native, "OPTIONS", {})}
    trainer = engine(program, model, None, torch.optim.SGD, None, None, None, options)
    each = program.micro_batch * program.micro_batches
    first = trainer.groups.coordinates[DP] * each
    own = [{n: t[first : first + each] for n, t in batch.items()} for batch in data]
    times = timed(lambda n: trainer.step(own[n % 2]), job.warmup + job.steps)
    error, worst = update_error(trainer, start, torch.load(job.reference))
    if trainer.groups.rank == 0:
        result = {"step_s": statistics.median(times[job.warmup :]), "upd_err": error, "upd_worst": worst}
        Path(job.output).write_text(json.dumps(result))
    finish_ranks()


def update_error(trainer: Engine, start: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> tuple[float, str]:
    """The worst relative error of a parameter's update and its name; 0 on ranks other than the first."""
    floor = FLOOR * statistics.median(float(t.norm()) for t in wanted.values())
    found = (0.0, "")
    for name in trainer.program.parameters:
        local = trainer.parameters.get(name)
        whole = gather(trainer.program, trainer.groups, name, local, everywhere=False)
        if whole is not None:
            update, reference = whole.detach() - start[name], wanted[name.removeprefix("gpt.")]
            error = float((update - reference).norm()) / max(float(reference.norm()), floor)
            found = max(found, (error, name))
    return found


if __name__ == "__main__":
    main(Job.load(Path(sys.argv[1])))
