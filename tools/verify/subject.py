"""What ``verify`` compares: a model whose constants were moved, its graph at one batch size, a batch of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from partitioner import Graph
from partitioner.comparing.perturb import perturb
from partitioner.comparing.resample import resample
from partitioner.precision import OWN, Precision
from tools.models.load import Source, load
from tools.models.traced import traced

EXAMPLE = 5  # samples; no size that a global batch of some ranks has, and no divisor of one


@dataclass(frozen=True)
class Subject:
    """``graph`` was traced at ``graph.batch`` samples, ``batch`` has another number of them."""

    source: Source
    graph: Graph
    batch: dict[str, torch.Tensor]
    moved: tuple[str, ...]
    others: dict[Precision, Graph] = field(default_factory=dict)

    @property
    def module(self) -> nn.Module:
        """The eager module, its constant parameters moved."""
        return self.source.module

    def traced_in(self, precision: Precision) -> Graph:
        """The graph in another precision, traced once."""
        if precision == self.graph.precision:
            return self.graph
        if precision not in self.others:
            given = replace(self.source, batch=resample(self.source.batch, self.graph.batched, self.graph.batch))
            self.others[precision] = traced(given, compare=False, precision=precision)
        return self.others[precision]

    def remarks(self) -> list[str]:
        """What was done to compare, for who reads the result."""
        sizes = f"traced at {self.graph.batch} samples"
        if not self.moved:
            return [sizes]
        names = ", ".join(self.moved[:3]) + (f" and {len(self.moved) - 3} more" if len(self.moved) > 3 else "")
        return [sizes, f"constant parameters start with noise added, so that every gradient tells: {names}"]


def subject_of(
    spec: str, settings: Mapping[str, object], seq: int | None, batch: int | None, samples: int, shrink: bool = False,
    precision: Precision = OWN,
) -> Subject:  # fmt: skip
    """Load a model and trace it at a size that is not ``samples``, the size of the batch; the same on every rank."""
    source = load(spec, settings, seq=seq, batch=batch, shrink=shrink)
    moved = perturb(source.module)
    given = replace(source, batch=_example(source.batch, samples))
    graph = traced(given, compare=False, precision=precision)
    return Subject(source, graph, resample(source.batch, graph.batched, samples), moved)


def _example(batch: dict[str, torch.Tensor], samples: int) -> dict[str, torch.Tensor]:
    """The example, one sample longer where it has the very size that it must not have."""
    sizes = [t.shape[0] for t in batch.values() if t.dim()]
    most = max(set(sizes), key=sizes.count)
    names = {name for name, t in batch.items() if t.shape[:1] == (most,)}
    return resample(batch, names, samples + 1) if most == samples else batch
