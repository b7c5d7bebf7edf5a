"""A chain of small blocks whose bytes and FLOPs a reader counts, and a cluster on which one thing alone takes time.

    embed       16 x 4     2 samples of 3 tokens     6 x 4 float32 handed on, 96 bytes
    blocks.n    4 x 4      x + tanh(x W)
    head        16 x 4     6 x 16 logits, their cross entropy
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import Cluster, Graph, trace
from partitioner.cost.backward_peak import StagePeaks
from partitioner.cost.op_seconds import ZERO
from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_units
from partitioner.cost.unit_cost import Priced, Stash
from partitioner.graph.tied_blocks import Value, fold
from partitioner.hardware.device import Attention, Device, one_row
from partitioner.hardware.link import Link
from partitioner.layouts.strategies import space
from partitioner.plan.parallelism import Parallelism
from partitioner.sharding.layout import Placement
from partitioner.software import Software
from partitioner.solve.choices import Prices
from partitioner.solve.solve import solve
from partitioner.step.split import Split, StageSums
from partitioner.step.stashes import Stashes


class Chain(nn.Module):
    def __init__(self, blocks: int, tied: bool, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.embed, self.head = nn.Embedding(16, 4), nn.Linear(4, 16, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh()) for _ in range(blocks))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = embedded = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        x = x + embedded if self.skip else x
        return F.cross_entropy(self.head(x).flatten(0, 1), y.flatten())


def chain(blocks: int = 3, tied: bool = False, length: int = 3, skip: bool = False) -> Graph:
    """``length``: tokens of a sample; ``skip``: the head reads what was embedded too."""
    tokens = torch.zeros(2, length, dtype=torch.int64)
    return trace(Chain(blocks, tied, skip), {"x": tokens, "y": tokens}, compare=False)


def cluster(
    devices: int = 4, nodes: int = 1, flops: float = math.inf, memory: float = math.inf, near: float = math.inf,
    far: float = math.inf, launch: float = 0.0, memory_bytes: float = 1e9, software: Software | None = None,
) -> Cluster:  # fmt: skip
    """FLOPs, bytes and messages take no time but those of which a speed is given; a speed of 1 counts them."""
    products = one_row(["float32"], 1.0, launch=launch)
    device = Device("", memory_bytes, memory, launch, 1.0, 1, 0.0, {"float32": flops}, products, Attention(1.0))
    links = Link(near, 1.0, 0.0), Link(far, 1.0, 0.0)
    return Cluster("", "flash", device, links[0], devices, links[1], nodes, software or Software())


def priced(graph: Graph, on: Cluster, tp: int = 1, layouts: Mapping[str, Placement] | None = None) -> Priced:
    """``layouts``: of parameters, by the end of a name; the others lie as is best."""
    folded = fold(graph)
    setting = Setting.of(folded, on, {"tp": tp})

    def allowed(value: Value, placement: Placement) -> bool:
        name = value.meta.get("source", "") if isinstance(value, torch.fx.Node) else ""
        return all(placement == wanted for end, wanted in (layouts or {}).items() if str(name).endswith(end))

    return price_units(setting, solve(folded, space(folded, "tp", tp), Prices(on, setting, 1), allowed), on)


def stage(**figures: object) -> StageSums:
    """Of one block that holds nothing and takes no time, but for the figures that are given."""
    empty = Stash(0.0, StagePeaks(0.0, 0.0, 0.0, 0.0))
    plain: dict[str, object] = {
        "seconds": ZERO, "weight_gradient_seconds": 0.0, "communication_seconds": 0.0, "axis_seconds": {},
        "collectives": (0, 0), "kernels": (0, 0), "blocks": 1,
        "stash": {"none": Stashes.of(empty), "full": Stashes.of(empty, empty)}, "input_bytes": 0.0, "output_bytes": 0.0,
        "sent_bytes": 0.0, "sent_back_bytes": 0.0, "flops": 0.0, "parameters": (), "weight_bytes": 0.0,
        "gradient_bytes": 0.0, "partial_bytes": {}, "scattered_bytes": 0.0, "tied_parameters": {},
        "once_seconds": 0.0, "copied_bytes": 0.0, "frozen_bytes": 0.0,
    }  # fmt: skip
    return StageSums(**plain | figures)  # type: ignore[arg-type]


def split(
    stages: tuple[StageSums, ...], pp: int = 1, dp: int = 1, many: int = 1, units: object = None,
    recomputed: tuple[int, ...] | None = None, **decisions: object,
) -> Split:  # fmt: skip
    """A step of ``many`` micro-batches; 1f1b, nothing recomputed, no ZeRO, tp 1 where nothing else is said."""
    plain: dict[str, object] = {
        "mesh": {"pp": pp, "dp": dp, "tp": 1}, "order": ("pp", "dp", "tp"), "micro_batch": 1,
        "schedule": "1f1b", "virtual": 1, "recompute": "none",
    }  # fmt: skip
    return Split(
        parallelism=Parallelism(micro_batches=many, **plain | decisions),  # type: ignore[arg-type]
        stages=stages,
        units=units or ((),) * len(stages),  # type: ignore[arg-type]
        recomputed=recomputed or (0,) * len(stages),
    )
