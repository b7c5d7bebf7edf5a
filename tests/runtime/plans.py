"""Hand-made Programs of one small model under several plans, their ranks, and processes to run them in."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import product

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from partitioner.lowering.program import Parameter, Program, Stage
from partitioner.ops.cut_tensors import take
from partitioner.sharding.layout import REPLICATE, WHOLE, Layout, Segment, Shard, local_shape, shard_whole
from runtime.ranks.launch import free_port

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (11, 6),
    "qkv.weight": (16, 6),
    "mlp.weight": (6, 10),
    "norm.weight": (6,),
    "small": (2, 6),
    "scale": (),
    "frozen": (3, 2),
}
LAST = {"mlp.weight", "small", "frozen"}


def _placement(name: str, ranks: int) -> Shard | None:
    if name == "embed.weight":
        return shard_whole(0, 11, ranks)
    if name == "qkv.weight":
        return Shard(0, (Segment(1, 4, 2), Segment(1, 2, 2), Segment(2, 2, 1)))
    if name == "mlp.weight":
        return shard_whole(1, 10, ranks)
    return shard_whole(0, 2, ranks) if name == "small" else None


def _layout(name: str, axes: tuple[tuple[str, int], ...]) -> Layout:
    first = _placement(name, axes[0][1])
    layout: Layout = (first or (REPLICATE if name == "norm.weight" else WHOLE),)
    if len(axes) == 1:
        return layout
    if name == "qkv.weight":
        return (*layout, Shard(0, (Segment(1, 2, 2), Segment(2, 2, 1))))
    other = 1 - first.dim if first else 0
    shape = SHAPES[name]
    return (*layout, shard_whole(other, shape[other], axes[1][1]) if first else WHOLE)


def program(
    pp: int = 1,
    dp: int = 1,
    tp: int = 1,
    axes: tuple[tuple[str, int], ...] | None = None,
    order: tuple[str, ...] = ("pp", "dp", "tp"),
    seed: int = 7,
) -> Program:
    """The small model on a mesh; the embedding is tied with "head.weight" and lies on the first and last stage."""
    axes = axes or (("tp", tp),)
    rows: dict[str, Parameter] = {}
    for name, shape in SHAPES.items():
        names = (name, "head.weight") if name == "embed.weight" else (name,)
        stages = tuple(sorted({0, pp - 1})) if len(names) > 1 else (pp - 1 if name in LAST else 0,)
        trains, full = name != "frozen", torch.float32
        rows[name] = Parameter(names, shape, full, trains, _layout(name, axes), stages, full)
    return of(rows, {"pp": pp, "dp": dp, "tp": tp}, axes, order, seed)


def of(
    parameters: dict[str, Parameter],
    mesh: dict[str, int],
    axes: tuple[tuple[str, int], ...],
    order: tuple[str, ...] = ("pp", "dp", "tp"),
    seed: int = 7,
) -> Program:
    """A Program that has parameters and a mesh, and stages with nothing to run."""
    stages = tuple(Stage(n, n, None, None, (), (), (), (), None) for n in range(mesh["pp"]))
    return Program(stages, parameters, (), None, (), mesh, order, axes, 1, 1, (), seed, {})


PLANS: dict[str, dict[str, object]] = {
    "tp2 pp2": {"tp": 2, "pp": 2},
    "dp4": {"dp": 4},
    "tp4": {"tp": 4},
    "kv2 repeat2": {"tp": 4, "axes": (("tp_kv", 2), ("tp_repeat", 2))},
    "pp2 dp2, dp first": {"pp": 2, "dp": 2, "order": ("dp", "pp", "tp")},
    "tp2 dp2, tp first": {"tp": 2, "dp": 2, "order": ("tp", "pp", "dp")},
}


def plan(name: str) -> Program:
    """One of the plans by its name; "one" is a single rank."""
    return program(**PLANS.get(name, {}))  # type: ignore[arg-type]


def coordinates(program: Program, rank: int) -> dict[str, int]:
    """The coordinates of a rank, counted by enumerating the mesh in its order."""
    rows = list(product(*(range(program.mesh[axis]) for axis in program.order)))
    found = dict(zip(program.order, rows[rank], strict=True))
    if len(program.axes) > 1:
        cells = list(product(*(range(size) for _, size in program.axes)))
        found |= dict(zip((axis for axis, _ in program.axes), cells[found["tp"]], strict=True))
    return found | {"dp_replica": found["dp"], "dp_shard": 0}


def world(program: Program) -> int:
    """The number of ranks."""
    return math.prod(program.mesh.values())


def shard(program: Program, name: str, whole: torch.Tensor, rank: int) -> torch.Tensor:
    """The part of a rank by ``layout.take``, one axis after the other: the independent truth."""
    here = coordinates(program, rank)
    for placement, (axis, ranks) in zip(program.parameters[name].layout, program.axes, strict=True):
        if isinstance(placement, Shard):
            expected = local_shape(tuple(whole.shape), (placement,), [(here[axis], ranks)])
            whole = take(whole, placement, here[axis], ranks)
            assert tuple(whole.shape) == expected
    return whole


def values(offset: float = 0.0) -> dict[str, torch.Tensor]:
    """Every full parameter, all elements different."""
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) + offset for name, shape in SHAPES.items()}


class Ranks:
    """Process groups of every axis of a Program, built by brute force."""

    def __init__(self, program: Program) -> None:
        self.device = torch.device("cpu")
        self._groups: dict[str, dist.ProcessGroup] = {}
        rows = [coordinates(program, rank) for rank in range(world(program))]
        mine = dist.get_rank() if dist.is_initialized() else 0
        self.coordinates = rows[mine]
        if not dist.is_initialized():
            return
        refined = [axis for axis, _ in program.axes] if len(program.axes) > 1 else []
        for axis in [*program.mesh, *refined]:
            hidden = {axis, *(refined if axis == "tp" else ["tp"] if refined else [])}
            same = [a for a in rows[0] if a not in hidden]
            for key in sorted({tuple(row[a] for a in same) for row in rows}):
                ranks = [r for r, row in enumerate(rows) if tuple(row[a] for a in same) == key]
                group = dist.new_group(ranks)
                if mine in ranks:
                    self._groups[axis] = group

    def group(self, axis: str) -> dist.ProcessGroup:
        return self._groups[axis]


def spawn(work: Callable[..., None], ranks: int, *arguments: object, seconds: float = 120.0) -> None:
    """Run ``work(rank, *arguments)`` in processes that share a gloo world; raises what the first failing one raised."""
    context = mp.start_processes(_enter, (work, ranks, free_port(), arguments), ranks, join=False, start_method="spawn")
    try:
        end = time.monotonic() + seconds
        while not context.join(1.0, grace_period=5.0):
            assert time.monotonic() < end, f"not done in {seconds} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join(10)


def _enter(rank: int, work: Callable[..., None], ranks: int, port: int, arguments: tuple[object, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    try:
        work(rank, *arguments)
    finally:
        gc.collect()  # a process group that something still holds would outlive the next line, and its threads Python
        dist.destroy_process_group()
