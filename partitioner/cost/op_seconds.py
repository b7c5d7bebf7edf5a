"""Seconds of one op: a pure function of its work and a Cluster.

product, attention    by its shape (partitioner/kernel_seconds)
the rest              bytes / reached bandwidth + launch
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from partitioner.cluster import Cluster
from partitioner.cost.op_work import Setting, op_work
from partitioner.kernel_seconds.attention import attention_seconds
from partitioner.kernel_seconds.product import gemm_seconds
from partitioner.kernel_seconds.work import Work
from partitioner.precision import OWN, RECIPES, SINGLE, TF32, Precision
from partitioner.sharding.equations import Strategies


@dataclass(frozen=True)
class Seconds:
    """Time of one micro-batch, forward and backward."""

    forward: float
    backward: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.forward + other.forward, self.backward + other.backward)

    @property
    def total(self) -> float:
        """Forward and backward together."""
        return self.forward + self.backward


ZERO = Seconds(0.0, 0.0)


def op_seconds(setting: Setting, node: fx.Node, strategies: Strategies, cluster: Cluster) -> Seconds:
    """Time of one op where the fullest rank's share of it runs; views, and a bias that joins its GEMM, are free."""
    rows, precision = op_work(setting, node, strategies), setting.folded.graph.precision
    return Seconds(*(work_seconds(work, cluster, precision) for work in rows))


def work_seconds(work: Work, cluster: Cluster, precision: Precision = OWN) -> float:
    """What an op does, one part after the other; a product's and an attention's launch is in their own seconds."""
    device, kind = cluster.device, product_type(dtype_name(work.dtype), precision)
    recipe = RECIPES.get(work.recipe)
    dtype, size = (recipe.dtype, recipe.bytes) if recipe else (kind, work.dtype.itemsize)
    products = sum(gemm_seconds(g, device, dtype, size, work.recipe) for g in work.gemms)
    attention = sum(attention_seconds(a, device, kind, cluster.software.attention) for a in work.attended)
    copies = device.products_of(work.recipe).copies
    streamed = work.streamed_bytes + sum(row.bytes(work.dtype.itemsize, size, copies) for row in work.quantized)
    whole = products + attention + streamed / device.streaming + work.streams * device.launch_seconds
    return whole / cluster.software.efficiency


def product_type(dtype: str, precision: Precision) -> str:
    """In which products of ``dtype`` run, as cluster files have it."""
    return TF32 if precision.tf32 and dtype == SINGLE else dtype


def dtype_name(dtype: torch.dtype) -> str:
    """As cluster files have it; a complex product is priced in the type of its parts."""
    return str(dtype.to_real() if dtype.is_complex else dtype).removeprefix("torch.")
